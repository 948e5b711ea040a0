"""Shrink a vision model to a budget and prove it: prune, fine-tune, export to ONNX, measure.

>>> import compress
>>> result = compress.run("dimap_swin.yaml", overrides={"prune.sparsity": 0.35})
>>> model = compress.load("runs/dimap_swin")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.bundle import load as load
    from compress.graph.apply import apply as apply
    from compress.prune.peers.history import plan_from_torch_pruning as plan_from_torch_pruning
    from compress.prune.structure import plan as plan
    from compress.runs.pipeline import run as run

__version__ = "0.1.0"
__all__ = ["__version__", "apply", "load", "plan", "plan_from_torch_pruning", "run"]

_HOMES = {
    "apply": "compress.graph.apply",
    "load": "compress.bundle",
    "plan": "compress.prune.structure",
    "plan_from_torch_pruning": "compress.prune.peers.history",
    "run": "compress.runs.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import the functions of the Python interface on first use, so that `import compress` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
