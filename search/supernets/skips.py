"""Skip connections among the choices of an architecture: what differentiable search collapses to."""

from __future__ import annotations

from fnmatch import fnmatchcase

from pydantic import Field

from compress.core.config import Config
from compress.core.errors import InputError
from spaces.architecture import Architecture
from spaces.space import Space

SKIPS = ("skip_connect", "skip", "identity")
"""What spaces call them."""


class SkipLimit(Config):
    """How many skip connections there may be (Liang et al. 2019, "DARTS+", stop at two in a normal cell)."""

    max_skips: int = Field(ge=0, description="skip connections that are not yet too many")
    within: str = Field("*", description="decisions that count, as a pattern such as normal.*")
    after_epochs: int = Field(0, ge=0, description="epochs of learning strengths in which there may be any number")

    def check(self, space: Space) -> None:
        """Raise InputError where the pattern has no decision of `space` that can be a skip connection."""
        able = [decision.name for decision in space.decisions if set(SKIPS) & set(decision.choices)]
        if not any(fnmatchcase(name, self.within) for name in able):
            allowed = f"allowed patterns of {', '.join(able[:6])}" if able else "leave collapse out"
            raise InputError(
                f"supernet.method.collapse.within: no decision of space {space.name} that can be a skip connection "
                f"matches; got {self.within!r}; {allowed}"
            )

    def exceeded_by(self, arch: Architecture, epoch: int) -> bool:
        """Return whether `arch` has too many after `epoch` (from 0) of learning strengths."""
        return epoch >= self.after_epochs and skips(arch, self.within) > self.max_skips


def skips(arch: Architecture, within: str = "*") -> int:
    """Return the number of decisions, among those that match a pattern, whose choice is a skip connection."""
    return sum(choice in SKIPS for name, choice in arch.items() if fnmatchcase(name, within))
