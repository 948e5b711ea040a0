"""This machine as the place where latency is measured."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar, Literal

from evaluators.latency.targets import TargetBase, targets
from evaluators.latency.targets.command import run_command


@targets.register("local")
class LocalTarget(TargetBase):
    """This machine, in a process of its own: a crash of the runtime does not take the run with it."""

    here: ClassVar[bool] = True
    kind: Literal["local"] = "local"

    @property
    def shown(self) -> str:
        """The word local."""
        return "local"

    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run it by the Python of this process; without a limit in time."""
        # -P: what lies in the working directory may be called like a module of the standard library
        return run_command([sys.executable, "-P", "-"], program, None)
