from __future__ import annotations

import code
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import search
import spaces
from compress.core.errors import InputError
from spaces.user_code import import_module
from spaces.zoo import ModelConfig, build_model

BLOCKS = """
from torch import nn
WIDTH = 8

class Block(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU())
"""
NET = """
import dataclasses
from torch import nn
{imports}

@dataclasses.dataclass
class Settings:
    classes: int = 5

class Net(nn.Sequential):
    def __init__(self):
        from {package} import blocks as late
        assert late.Block is Block
        super().__init__(Block(3), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, Settings().classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(folder: Path, package: str, imports: str) -> None:
    (folder / package).mkdir(exist_ok=True)
    (folder / package / "blocks.py").write_text(BLOCKS)
    (folder / package / "net.py").write_text(NET.format(imports=imports, package=package))


def built(name: str) -> torch.nn.Module:
    return build_model(ModelConfig(source="python", name=name, input_size=(3, 8, 8))).module


@pytest.mark.parametrize("package", ["search", "spaces", "compress", "evaluators", "code", "test", "types", "mine"])
@pytest.mark.parametrize(
    "imports",
    ["from .blocks import Block", "from {0}.blocks import Block", "import {0}.blocks\nBlock = {0}.blocks.Block"],
)
def test_a_folder_may_be_called_like_a_package_that_is_installed(folder: Path, package: str, imports: str) -> None:
    write(folder, package, imports.format(package))
    before = sys.modules.get(package)
    built(f"{package}.net:Net")
    assert sys.modules.get(package) is before


@pytest.mark.parametrize("name", ["code", "test", "types", "search", "spaces", "net", "numbers"])
def test_a_file_may_be_called_like_a_module_that_is_installed(folder: Path, name: str) -> None:
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / f"{name}.py").write_text(NET.format(imports="from blocks import Block", package="layers"))
    (folder / "layers").mkdir()
    (folder / "layers" / "blocks.py").write_text("from blocks import Block")
    built(f"{name}:Net")


def test_what_is_installed_stays_what_it_is(folder: Path) -> None:
    write(
        folder,
        "search",
        "from .blocks import Block\nimport code, types, numbers\nassert code.interact and types.ModuleType",
    )
    for name in ("code", "types", "numbers"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    built("search.net:Net")
    assert sys.modules["search"] is search and sys.modules["code"] is code
    from search.study import JOURNAL

    assert JOURNAL
    own = import_module("spaces.cifar_resnet")
    assert own.__file__ is not None and Path(own.__file__).parent == Path(str(spaces.__file__)).parent


def test_a_module_that_is_imported_already_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "imported_before.py").write_text("class Net: pass")
    monkeypatch.syspath_prepend(str(folder))
    import imported_before  # type: ignore[import-not-found]

    assert import_module("imported_before") is imported_before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys; sys.exit('usage: net.py FILE')", "SystemExit: usage: net.py FILE"),
        ("def broken(:", "SyntaxError"),
        ("from search import nothing", "ImportError: cannot import name 'nothing'"),
        ("x = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_fails_is_named(folder: Path, text: str, says: str) -> None:
    (folder / "bad.py").write_text(text)
    with pytest.raises(InputError, match=f"cannot import 'bad': {says}"):
        built("bad:Net")


def test_files_of_the_user_do_not_reach_the_process_that_measures(folder: Path) -> None:
    for name in ("types", "json", "code"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    ask = """
from evaluators.latency.targets.local import LocalTarget
from evaluators.latency.width_multiple import width_multiple
print(width_multiple(LocalTarget()).value)
"""
    done = subprocess.run([sys.executable, "-P", "-c", ask], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) >= 1, done.stderr
