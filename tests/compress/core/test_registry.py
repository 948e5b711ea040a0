from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.core.registry import Registry


def test_a_name_is_taken_once_and_says_by_whom() -> None:
    tools: Registry[Any] = Registry("tool")

    @tools.register("saw", "handsaw")
    class Saw:
        """Cuts wood.

        Along the grain as well.
        """

    assert tools.names() == ["handsaw", "saw"] and tools.names("hand*") == ["handsaw"]
    assert tools.get("saw") is Saw and "saw" in tools and "axe" not in tools and list(tools) == ["handsaw", "saw"]
    assert tools.summary("saw") == "Cuts wood."
    with pytest.raises(ValueError, match=r"tool 'saw' is taken by .*test_registry"):
        tools.register("saw")(object)
    with pytest.raises(InputError, match="unknown tool 'sow'; allowed: handsaw, saw; did you mean 'saw'"):
        tools.get("sow")


def test_only_subclasses_of_the_base_are_taken() -> None:
    tools: Registry[Any] = Registry("tool", base=Path)
    for wrong in (dict, Path("here")):
        with pytest.raises(TypeError, match=r"tool 'x' is .*, no subclass of Path"):
            tools.register("x")(wrong)


HOME = """
import sys
from compress.core.registry import Registry
things = Registry("thing", home=("house", "annex"))
"""
ROOM = """
from house import things
assert "chair" not in things  # a module may ask while modules are being imported
@things.register("chair")
def chair(): "To sit on."
"""


def test_the_modules_of_every_home_register_when_the_registry_is_first_asked(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text(HOME)
    (tmp_path / "house" / "room.py").write_text(ROOM)
    (tmp_path / "annex.py").write_text('from house import things\nthings.register("table")(print)\n')
    code = (
        "import sys, house\n"
        "assert 'house.room' not in sys.modules\n"
        "assert house.things.names() == ['chair', 'table'], house.things.names()\n"
        "assert house.things.summary('chair') == 'To sit on.'\n"
    )
    root = str(Path(__file__).parents[3])
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{root}"}, check=True, timeout=60
    )
