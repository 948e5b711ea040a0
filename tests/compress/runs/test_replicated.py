"""A run whose trainings are shared by several processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.core.environment import choose_device, choose_devices
from compress.core.errors import CompressError, InputError
from compress.runs.pipeline import run
from tests.support.processes import Child

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "shared",
    "model": {
        "source": "timm",
        "name": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
    "data": {"name": "digits", "image_size": 8, "batch_size": 64, "augment": "shift"},
    "train": {"epochs": 2, "lr": 2.0e-3},
    "prune": {"kind": "structure", "budget": {"macs": 0.7}},
    "finetune": {"epochs": 2, "lr": 1.0e-3, "checkpoint_seconds": 0, "distill": {"loss": "kd", "temperature": 4}},
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_two_devices_find_what_one_finds(tmp_path: Path) -> None:
    alone = run(RECIPE, out=tmp_path / "one", device="cpu")
    both = run(RECIPE, out=tmp_path / "two", device="cpu,cpu")
    assert both.report["environment"]["devices"] == ["cpu", "cpu"]
    assert "devices" not in alone.report["environment"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    first, second = (compress.load(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


def _run(folder: Path) -> None:
    run(RECIPE, out=folder, device="cpu,cpu", resume=folder.exists())


def test_killed_and_resumed_it_ends_alike(tmp_path: Path) -> None:
    _run(tmp_path / "whole")
    folder = tmp_path / "killed"
    child = Child(_run, folder)
    checkpoint = folder / "stages" / "03-finetune" / "checkpoint" / "training.pt"
    until = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert checkpoint.is_file() and not (folder / "report.json").exists()
    _run(folder)
    first, second = (compress.load(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    until = time.monotonic() + 20
    while _replicas_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _replicas_of(folder), "a replica has outlived its run"


def _replicas_of(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            told = process.read_text()
            if "compress.runs.replica" in told and str(folder) in told:
                found.append(int(process.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_replica_that_dies_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = Child(_dies_with_its_replica, folder)
    until = time.monotonic() + 120
    while not list(folder.glob("stages/*/checkpoint/training.pt")) and time.monotonic() < until:
        time.sleep(0.01)
    found = _replicas_of(folder)
    assert found
    for replica in found:
        os.kill(replica, signal.SIGKILL)
    assert child.wait() == 0


def _dies_with_its_replica(folder: Path) -> None:
    recipe = {**RECIPE, "train": {**RECIPE["train"], "epochs": 200, "checkpoint_seconds": 0}}
    with pytest.raises(CompressError, match=r"the process that trains on cpu has ended: .*; log: .*; go on with"):
        run(recipe, out=folder, device="cpu,cpu")


def test_a_replica_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.py"
    own.write_text(
        "import sys\nfrom torch import nn\n\n\ndef net(num_classes, in_chans):\n"
        "    spec = sys.modules['__main__'].__spec__\n"
        "    if spec is not None and spec.name == 'compress.runs.replica':\n"
        "        raise ValueError('not known here')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))\n"
    )
    recipe = {**RECIPE, "model": {"source": "python", "name": "own.py:net"}, "prune": None, "finetune": None}
    with pytest.raises(CompressError, match=r"the process that trains on cpu has ended: .*not known here"):
        run(recipe, out=tmp_path / "run", device="cpu,cpu")


def test_a_replica_that_never_comes_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(CompressError, match=r"the process that trains on cpu has ended: exit code 1; log"):
        run(RECIPE, out=tmp_path / "run", device="cpu,cpu")


def test_a_batch_that_two_cannot_share_is_refused(tmp_path: Path) -> None:
    recipe = {**RECIPE, "data": {**RECIPE["data"], "batch_size": 63}}
    with pytest.raises(InputError, match=r"data\.batch_size: 2 devices share each batch, and one is of 63; allowed"):
        run(recipe, out=tmp_path / "run", device="cpu,cpu")
    assert not (tmp_path / "run").exists()


def test_devices_are_chosen_by_name() -> None:
    assert choose_devices("cpu") == ["cpu"] and choose_devices("cpu, cpu") == ["cpu", "cpu"]
    with pytest.raises(InputError, match="takes one here"):
        choose_device("cpu,cpu")
    for wrong in ("cpu,auto", "cpu,"):
        with pytest.raises(InputError, match="--device"):
            choose_devices(wrong)
