"""What an allocation has measured so far, in one file, so that a run that goes on measures nothing twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.atomic import write_json

SAVED_EVERY = 5.0  # seconds


class Journal(dict[str, Any]):
    """Figures (plain JSON) by name, kept in a file: those of the same model and settings (`about`) only.

    Args:
        path: of the file; None: nothing is kept.
        about: a fingerprint of what the figures belong to.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        super().__init__()
        self.path, self.about = path, about
        self._saved = time.monotonic()
        if path is not None and path.is_file():
            self.update(_read(path, about))

    def __setitem__(self, name: str, value: Any) -> None:
        """Enter a figure; the file has it within a few seconds."""
        super().__setitem__(name, value)
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file."""
        if self.path is not None:
            write_json(self.path, {"about": self.about, "figures": dict(self)})
            self._saved = time.monotonic()


def _read(path: Path, about: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found["figures"]) if found["about"] == about else {}
    except (ValueError, KeyError, TypeError):
        return {}


def fingerprint(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """Return what tells a model's weights and the settings from others."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
