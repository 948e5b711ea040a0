"""Shared data for the checks against published figures; they are skipped where it is not at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of data sets and weights that COMPRESS_DATA names."""
    if "COMPRESS_DATA" not in os.environ:
        pytest.skip("COMPRESS_DATA is not set: it names the directory with cifar10/ and weights/")
    return Path(os.environ["COMPRESS_DATA"])


@pytest.fixture(scope="session")
def cifar10_npz(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the provided CIFAR-10 images (20,000 to train, 5,000 to test) as one .npz."""
    tool = shared_data.parent / "tools" / "cifar10_npz.py"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there: it writes the .npz")
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    subprocess.run([sys.executable, tool, path, "--data", shared_data / "cifar10"], check=True, capture_output=True)
    return path
