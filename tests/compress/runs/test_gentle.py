"""Fine-tuning after compensation: a better end is kept, a worse one is not, and a quarter of the epochs is warm-up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from compress.bundle import Opened, open_model
from compress.distill.finetune import FinetuneConfig
from compress.runs.context import Context
from compress.runs.stages.gentle import compensated_before, train_gently
from compress.training.fit import fit
from evaluators.datasets import DataConfig
from evaluators.datasets.holdout import set_apart
from spaces.zoo import ModelConfig


@pytest.fixture
def opened() -> Opened:
    """An MLP that has begun to learn digits."""
    data: Any = TypeAdapter(DataConfig).validate_python({"name": "digits", "image_size": 8, "batch_size": 64})
    model = ModelConfig.model_validate({"source": "builtin", "name": "mlp", "kwargs": {"widths": [32]}})
    found = open_model(model, data)
    assert found.data is not None
    fit(found.bundle.model, found.data, FinetuneConfig(epochs=2, lr=3e-3, evaluate_every=0))
    return found


def context_of(opened: Opened, directory: Path, log: list[dict[str, Any]]) -> Context:
    recipe: Any = SimpleNamespace(seed=0)
    paths = dict.fromkeys(("run", "directory", "baseline_onnx", "model_file"), directory)
    return Context(
        recipe,
        opened.data,
        "cpu",
        resume=False,
        log=log.append,
        compares=True,
        baseline=lambda: opened.bundle,
        step=1,
        earlier=[],
        **paths,
    )


@pytest.mark.parametrize(("lr", "kept"), [(3e-3, "end"), (3.0, "start")])
def test_the_better_of_start_and_end_is_kept(opened: Opened, tmp_path: Path, lr: float, kept: str) -> None:
    before = {name: value.clone() for name, value in opened.bundle.model.state_dict().items()}
    context = context_of(opened, tmp_path, [])
    train_gently(opened.bundle, FinetuneConfig(epochs=2, lr=lr, evaluate_every=0), context, "fine-tuning", None)
    after = opened.bundle.model.state_dict()
    assert context.details["kept"] == kept
    assert all(torch.equal(value, after[name]) for name, value in before.items()) is (kept == "start")
    found = context.details["set_apart"]
    assert (found["end"] > found["start"]) is (kept == "end")
    assert f"{found['images']} training images set apart" in context.details["notes"][0]


@pytest.mark.parametrize(("warmup", "first"), [(None, 0.5), (0.0, 1.0)])
def test_the_learning_rate_rises_over_a_quarter_unless_the_recipe_says_otherwise(
    opened: Opened, tmp_path: Path, warmup: float | None, first: float
) -> None:
    events: list[dict[str, Any]] = []
    config = FinetuneConfig(epochs=8, lr=1e-3, warmup_epochs=warmup, schedule="constant", evaluate_every=0)
    train_gently(opened.bundle, config, context_of(opened, tmp_path, events), "fine-tuning", None)
    rates = [event["lr"] / 1e-3 for event in events if event["event"] == "epoch"]
    assert rates[0] == pytest.approx(first, abs=0.05)
    assert rates[3] == pytest.approx(1.0)


def test_images_set_apart_are_not_learnt_from(opened: Opened) -> None:
    assert opened.data is not None and opened.data.train is not None
    found = set_apart(opened.data, 100, 0)
    assert found is not None
    rest, judged = found
    assert rest.train is not None and rest.test is opened.data.test
    assert judged.num_samples == 100
    assert rest.train.num_samples == opened.data.train.num_samples - 100
    ours, theirs = (torch.cat([batch.inputs for batch in part.batches()]).flatten(1) for part in (rest.train, judged))
    assert torch.cdist(theirs, ours).amin() > 0


def test_what_was_compensated_is_read_from_the_records() -> None:
    assert compensated_before([{"compensation": {"kept": True}}, {"name": "finetune"}])
    assert not compensated_before([{"compensation": {"kept": False}}, {"compensation": None}, {}])
