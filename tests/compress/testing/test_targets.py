"""The checks of targets pass for what is shipped, and say in a sentence what is wrong with one."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

import pytest

from compress.testing.targets import check_target
from evaluators.latency.targets.command import CommandTarget
from evaluators.latency.targets.local import LocalTarget


@pytest.mark.parametrize("target", [LocalTarget(), CommandTarget(command=f"{shlex.quote(sys.executable)} -")])
def test_shipped_targets_pass(target: Any) -> None:
    check_target(target)


class Short(LocalTarget):
    """Sends a program's beginning."""

    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        return super().run(program[-1000:])


class Calm(LocalTarget):
    """Says that all is well."""

    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        done = super().run(program)
        return subprocess.CompletedProcess(done.args, 0, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Short, "does not run"), (Calm, "does not tell that a program failed")],
)
def test_a_wrong_target_is_caught(kind: type[LocalTarget], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_target(kind())
