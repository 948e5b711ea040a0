"""Where latency is measured: this machine, what a command such as ssh reaches, a node of a Ray cluster. One file each.

A new target is one new file in this package, or a module of your own: a `TargetBase` subclass with its options, a field
`kind: Literal["name"] = "name"`, `shown` and `run`, entered with `@targets.register("name")`.
"""

from __future__ import annotations

import subprocess
from abc import abstractmethod
from typing import Annotated, ClassVar

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOfShort


class TargetBase(Config):
    """A Python with numpy and onnxruntime, there or on another machine, and how a program gets to it."""

    here: ClassVar[bool] = False
    """Whether it is this machine, so that it reads files where they lie and none has to be sent."""
    kind: str

    @property
    @abstractmethod
    def shown(self) -> str:
        """How it is called in messages and tables."""

    @abstractmethod
    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        """Let the Python run `program` (UTF-8, megabytes where models are sent), and return what it printed.

        Raises:
            InputError: it cannot be reached.
            CompressError: it did not answer in time, or was lost.
        """


targets: Registry[type[TargetBase]] = Registry("target", home="evaluators.latency.targets", base=TargetBase)

Target = Annotated[TargetBase, OneOfShort(targets, "kind")]
"""A key `target` of a recipe: `local`, `{command: ...}`, `{ray: ...}`, or any other one with its `kind`."""
