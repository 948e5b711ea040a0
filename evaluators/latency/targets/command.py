"""What a command such as ssh or adb reaches as the place where latency is measured."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Literal

from pydantic import Field, field_validator

from compress.core.errors import CompressError, InputError
from evaluators.latency.targets import TargetBase, targets


@targets.register("command")
class CommandTarget(TargetBase):
    """A command that runs a Python with numpy and onnxruntime, and reads its program from standard input."""

    kind: Literal["command"] = "command"
    command: str = Field(description="run without a shell, such as 'ssh host python3 -' or 'adb shell python3 -'")
    timeout: float = Field(1800.0, gt=0, description="seconds until a silent target is given up")

    @field_validator("command")
    @classmethod
    def _splits(cls, command: str) -> str:
        if not shlex.split(command):
            raise ValueError("an empty command; expected one such as 'ssh host python3 -'")
        return command

    @property
    def shown(self) -> str:
        """The command."""
        return self.command

    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run it by the command."""
        return run_command(shlex.split(self.command), program, self.timeout)


def run_command(command: list[str], program: bytes, timeout: float | None) -> subprocess.CompletedProcess[bytes]:
    """Return what `command` printed that got `program` on standard input.

    Raises:
        InputError: it cannot be started.
        CompressError: it did not end within `timeout` seconds (None: no limit).
    """
    shown = shlex.join(command)
    # Unbuffered, Python reads its program one byte a system call: 4 minutes for a model of 350 MB.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    try:
        return subprocess.run(
            command, input=program, capture_output=True, timeout=timeout, check=False, env=environment
        )
    except OSError as error:
        reason = "no such program" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise InputError(f"latency target command {shown!r} cannot be started: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"latency target command {shown!r} did not answer within {timeout:g} s") from error
