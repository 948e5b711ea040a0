"""What the processor of a target can do: which instructions it multiplies short numbers by."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from evaluators.latency.ask import ask
from evaluators.latency.targets import TargetBase

X86, ARM = ("x86_64", "AMD64", "i686"), ("aarch64", "arm64", "ARM64", "armv7l", "armv8l")


@dataclass(frozen=True)
class Processor:
    """A processor as its system describes it.

    Attributes:
        machine: such as "x86_64" or "aarch64".
        features: Linux's names of what it has, such as "avx512_vnni" or "asimddp"; empty where that is not told.
    """

    machine: str
    features: tuple[str, ...] = ()

    @property
    def x86(self) -> bool:
        """Whether it is one of Intel's or AMD's."""
        return self.machine in X86

    @property
    def arm(self) -> bool:
        """Whether it is one of ARM's."""
        return self.machine in ARM

    @property
    def vnni(self) -> bool:
        """Whether it adds up products of bytes without saturating in between (VNNI, AMX); False where not known."""
        return any(name in self.features for name in ("avx_vnni", "avx512_vnni", "amx_int8"))


@functools.cache
def processor(target: TargetBase) -> Processor:
    """Return the processor of `target`, which need not be this machine's; raises as `ask` does."""
    found = ask(target, {"action": "cpu"})
    return Processor(found["machine"], tuple(found["features"]))
