from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.errors import CompressError
from compress.training.checkpoint import FILE_NAME, write_checkpoint
from compress.training.position import Position


def test_a_full_disk_says_whether_there_is_a_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = tmp_path / FILE_NAME, torch.save

    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CompressError, match=r"failed writing file .*; there is none yet to go on from"):
        write_checkpoint(path, Position(), {}, {})
    monkeypatch.setattr(torch, "save", save)
    write_checkpoint(path, Position(), {}, {})
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CompressError, match="the last complete one is kept"):
        write_checkpoint(path, Position(), {}, {})
