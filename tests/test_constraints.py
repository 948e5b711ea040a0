"""The files of versions say what pyproject.toml says."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
APART = {"nni", "pytorch-lightning", "tensorboard"}
"""Extras that the newest versions are not tried with: NNI wants an old filelock, and tensorboardX comes with Ray."""


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def required() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    del found["compress"]
    return found


def test_the_lowest_version_of_everything_is_the_one_that_is_tried() -> None:
    lowest = pins("constraints-lowest.txt")
    for name, requirement in required().items():
        (limit,) = requirement.specifier
        assert (name, limit.operator, Version(limit.version)) == (name, ">=", lowest[name])


def test_the_versions_of_this_release_are_allowed() -> None:
    newest = pins("constraints.txt")
    for name, requirement in required().items():
        assert name in APART or newest[name] in requirement.specifier, name
