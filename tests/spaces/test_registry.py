from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Decision
from spaces.registry import create, open_preset, presets, read_architecture, space_class, spaces
from spaces.space import Preset, Space


class Options(Config):
    width: int = Field(4, ge=1, description="channels")
    kernels: tuple[int, ...] = Field((3, 5), description="kernel sizes to choose from")


class Toy(Space):
    Config = Options
    presets: ClassVar = {
        "wide": Preset("the wide space", {"width": 8}),
        "point": Preset("one network", {"width": 6}, {"kernel": 5}),
    }

    def _decisions(self) -> list[Decision]:
        return [Decision("kernel", self.config.kernels)]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return nn.Conv2d(task.in_chans, self.config.width, arch.number("kernel"))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    spaces.names()  # the others first, so that they are not loaded into the table that goes away
    monkeypatch.setattr(spaces, "_items", {**spaces._items, "toy": Toy})
    yield


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: object) -> Path:
        path = tmp_path / "arch.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def problems(call: Any, *arguments: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return caught.value.problems


def test_every_registered_space_can_be_created_with_its_defaults_or_says_what_it_needs() -> None:
    assert spaces.names() == sorted(spaces.names()) and "toy" in spaces.names()
    for name in spaces.names():
        assert issubclass(space_class(name), Space)
        try:
            assert create(name).name == name
        except InputError as error:
            assert all(name in problem for problem in error.problems)


def test_every_field_of_every_space_has_a_description() -> None:
    for name in spaces.names():
        for key, field in space_class(name).Config.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_an_unknown_space_is_named_with_the_nearest() -> None:
    (problem,) = problems(create, "tooy")
    assert problem.startswith("unknown space 'tooy'; allowed: ") and problem.endswith("did you mean 'toy'?")


def test_every_wrong_option_is_reported() -> None:
    assert problems(create, "toy", {"widht": 3, "width": 0, "kernels": "all"}) == [
        "space toy, option widht: unknown key; allowed kernels, width; did you mean 'width'?",
        "space toy, option width: out of range; got 0; allowed at least 1",
        'space toy, option kernels: wrong type; got "all"; allowed a list',
    ]


def test_presets_open_with_their_options_and_architecture_and_options_win() -> None:
    assert set(presets("toy")) == {"wide", "point"}
    space, arch = open_preset("toy", "wide")
    assert space.config.width == 8 and arch is None
    space, arch = open_preset("toy", "point", {"width": 2})
    assert space.config.width == 2 and arch == {"kernel": 5}
    (problem,) = problems(open_preset, "toy", "pint")
    assert problem == "space toy has no preset 'pint'; allowed: wide, point; did you mean 'point'?"


def test_a_written_architecture_is_read_with_its_space_and_options(write: Any) -> None:
    space = create("toy", {"width": 3, "kernels": (1, 7)})
    path = write(space.to_dict({"kernel": 7}))
    for name in (None, "toy"):
        again, arch = read_architecture(path, name)
        assert again.name == "toy" and again.config == space.config and arch == {"kernel": 7}
    again, arch = read_architecture(path, options={"width": 9})
    assert again.config.width == 9 and again.config.kernels == (1, 7)


def test_bare_choices_are_read_where_the_space_is_named(write: Any) -> None:
    space, arch = read_architecture(write({"kernel": 5}), "toy")
    assert space.config == Options() and arch == {"kernel": 5}
    (problem,) = problems(read_architecture, write({"kernel": 5}))
    assert "names no space; give one of" in problem and "toy" in problem


def test_files_that_are_no_architecture_are_refused_in_one_sentence_each(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "arch.json"
    cases: list[tuple[Any, str | None, str]] = [
        ("{", "toy", "cannot be read as JSON"),
        ({"kernel": 4}, "toy", "kernel: got 4; allowed 3 or 5"),
        ([1], "toy", "mapping of decisions to choices; got [1]"),
        ({"space": "toy", "choices": {"kernel": 3}}, "other", "is an architecture of space 'toy'; got 'other'"),
        ({"space": "toy", "options": [1], "choices": {"kernel": 3}}, None, "options must be a mapping; got [1]"),
        ({"space": "toy", "options": None, "choices": {"kernel": 3}}, None, "options must be a mapping; got None"),
        ({"space": "toy"}, None, "has no choices"),
    ]
    for content, name, expected in cases:
        found = problems(read_architecture, write(content), name)
        assert len(found) == 1 and found[0].startswith(f"{path}: ") and expected in found[0], found
    (problem,) = problems(read_architecture, tmp_path / "missing.json", "toy")
    assert "missing.json: cannot be read: No such file or directory" in problem
    (problem,) = problems(read_architecture, tmp_path, "toy")
    assert "cannot be read: Is a directory" in problem
