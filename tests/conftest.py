"""What several tests share: a recipe that runs in seconds, and one finished run of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import one_server

from compress.core.progress import set_quiet
from compress.graph import tracer

# A Swin of two blocks on a few digits: every stage of a run in seconds.
QUICK: dict[str, Any] = {
    "model.kwargs": {"patch_size": 4, "window_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]},
    "data.image_size": 16,
    "data.limit_train": 200,
    "data.limit_test": 100,
    "train.epochs": 2,
    "train.warmup_epochs": 0,
    "finetune.epochs": 2,
    "finetune.warmup_epochs": 0,
    "export.exporter": "torchscript",
    "latency.runs": 3,
    "latency.seconds": 0,
    "latency.max_seconds": 2,
}


LONGEST = {"test_recipes.py", "test_readme.py", "test_whole_way_kills.py", "test_compensation.py"}
"""Files whose tests take up to a minute each."""

TOGETHER = {"test_all_spaces.py", "test_channels.py", "test_dimap_swin.py", "test_models.py"}
"""Files whose tests share what functions of theirs keep."""

tracer.STRICT = True  # a rule that fails is an error in tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, so that at the end no worker waits for the other; make what a file shares once."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("xdist_group") is None and (item.path.name in TOGETHER or shares(item)):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what imports have made, most of what it looks at in each round."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let it look at them again: extensions count as leaks what is left at the end."""
    gc.unfreeze()


def shares(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture of its file's scope, which each worker would make anew."""
    fixtures = item._fixtureinfo.name2fixturedefs  # the only place that tells of scopes
    return any(fixtures[name][-1].scope == "module" for name in item.fixturenames if name in fixtures)


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[None]:
    """Processes that tests and searches start are forked from one that has imported what takes long."""
    with one_server():
        yield


@pytest.fixture(autouse=True)
def heard() -> None:
    """Log lines are on, whatever a test before this one did."""
    set_quiet(False)


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Overrides that make `dimap_swin.yaml` run in seconds."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of `dimap_swin.yaml`, made quick; not to be written to."""
    import compress

    out = tmp_path_factory.mktemp("runs") / "quick"
    compress.run("dimap_swin.yaml", overrides=QUICK, out=out, device="cpu")
    return out
