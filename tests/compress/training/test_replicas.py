"""Several processes that train one model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_data, tiny_model
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.training.config import TrainConfig
from compress.training.replicas import Replicas, joined, replicas, shared
from compress.training.step import StepContext
from compress.training.supervised import Supervised
from compress.training.trainer import Trainer
from evaluators.datasets.batch import Batch
from evaluators.datasets.samples import SampleLoader, Samples
from tests.support.processes import Child

COUNT = 2


def together(function: Callable[[Path], Any], folder: Path) -> list[Any]:
    """Call `function` in two processes that are replicas, and return what each gives."""
    children = [Child(_joined, function, number, folder) for number in range(COUNT)]
    assert [child.wait() for child in children] == [0] * COUNT
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(COUNT)]


def _joined(function: Callable[[Path], Any], number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(number, COUNT, folder / "meeting"):
        found = function(folder)
    assert replicas() == Replicas()
    torch.save(found, folder / f"{number}.pt")


def plain_model() -> nn.Module:
    """Nothing that depends on the other samples of a batch, and nothing random."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


def trained(model: nn.Module, folder: Path | None = None, **settings: Any) -> dict[str, Any]:
    config = TrainConfig.model_validate({"epochs": 3, "lr": 0.01, **settings})
    data = tiny_data()
    trainer = Trainer(model, Supervised(StepContext(config, data)), data, config, checkpoint_dir=folder)
    result = trainer.run()
    losses = [float(event["loss"]) for event in result.history]
    return {**model.state_dict(), "losses": torch.tensor(losses), "metrics": result.metrics}


def test_two_learn_what_one_would(tmp_path: Path) -> None:
    settings = {"ema": 0.9, "clip_grad": 0.5, "keep": "best"}
    one, other = together(_plainly, tmp_path)
    alone = trained(plain_model(), **settings)
    for name, value in alone.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    assert one["metrics"]["top1"] == other["metrics"]["top1"] == alone["metrics"]["top1"]


def _plainly(folder: Path) -> dict[str, Any]:
    return trained(plain_model(), folder / "checkpoint", ema=0.9, clip_grad=0.5, keep="best")


def test_batch_norms_keep_the_mean_of_what_each_sees(tmp_path: Path) -> None:
    one, other = together(_with_norms, tmp_path)
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, Tensor))
    still = trained(tiny_model(), epochs=1, lr=1e-12, optimizer="sgd", weight_decay=0.0, ema=0.5)
    torch.testing.assert_close(one["1.running_mean"], still["1.running_mean"])
    assert not torch.equal(one["1.running_var"], still["1.running_var"])  # of 8 samples, not of 16


def _with_norms(folder: Path) -> dict[str, Any]:
    return trained(tiny_model(), epochs=1, lr=1e-12, optimizer="sgd", weight_decay=0.0, ema=0.5)


def test_what_they_agree_on(tmp_path: Path) -> None:
    one, other = together(_agreed, tmp_path)
    assert one == other
    assert one["gradients"] == [[0.5, 0.5], [2.0, 2.0], None]
    assert one["led"] == "0 says" and one["mean"] == {"a": 0.5, "b": "kept", "of one": 4.0, "not a number": None}
    assert "no longer hold the same weights" in one["drifted"]
    assert one["aligned"] == [[0.0, 0.0], False]


def _agreed(folder: Path) -> dict[str, Any]:
    here = replicas()
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = None if here.leads else torch.ones(2)  # of no sample of the leader's share
    parameters[1].grad = torch.full((2,), 1.0 + 2 * here.number)
    here.average_gradients(parameters)
    found: dict[str, Any] = {"gradients": [None if each.grad is None else each.grad.tolist() for each in parameters]}
    found["led"] = here.led(lambda: f"{here.number} says")
    mine = {"of one": 4.0} if here.number else {"not a number": None}
    found["mean"] = {**here.mean({"a": float(here.number), "b": "kept", **mine}), "not a number": None}
    model = nn.Linear(2, 1, bias=False)
    model.register_buffer("on", torch.tensor(not here.leads))
    with torch.no_grad():
        model.weight.fill_(here.number)
    try:
        here.check_alike(model)
        found["drifted"] = "not seen"
    except CompressError as error:
        found["drifted"] = str(error)
    here.align(model)
    here.check_alike(model)
    found["aligned"] = [model.weight[0].tolist(), bool(model.on)]
    return found


def test_a_state_is_read_by_the_leader_alone(tmp_path: Path) -> None:
    together(_half, tmp_path)
    (tmp_path / "meeting").unlink(missing_ok=True)
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "checkpoint", alone / "checkpoint")
    resumed = together(_rest, tmp_path)
    by_one = _some(alone, 4, True)  # on another number of devices
    torch.testing.assert_close(by_one["6.weight"], resumed[0]["6.weight"], rtol=0.5, atol=0.05)
    assert torch.equal(resumed[0]["1.weight"], resumed[1]["1.weight"])
    whole = tmp_path / "whole"
    whole.mkdir()
    straight = together(_straight, whole)
    assert all(torch.equal(value, straight[0][name]) for name, value in resumed[0].items())


def _half(folder: Path) -> dict[str, Any]:
    return _some(folder, 2, False)


def _rest(folder: Path) -> dict[str, Any]:
    return _some(folder, 4, True)


def _straight(folder: Path) -> dict[str, Any]:
    return _some(folder, 4, False)


def _some(folder: Path, epochs: int, resume: bool) -> dict[str, Any]:
    given = {"epochs": epochs, "schedule": "constant", "warmup_epochs": 0, "checkpoint_seconds": 0}
    config, data, model = TrainConfig.model_validate(given), tiny_data(), tiny_model()
    # Only the leader's folder holds anything: that of another is on no disk.
    place = folder / "checkpoint" if replicas().leads else folder / "elsewhere"
    Trainer(model, Supervised(StepContext(config, data)), data, config, checkpoint_dir=place).run(resume)
    assert not (folder / "elsewhere").exists()
    return dict(model.state_dict())


@pytest.mark.parametrize("samples", [1, 15])
def test_a_batch_that_cannot_be_divided(samples: int) -> None:
    with pytest.raises(InputError, match=rf"data\.batch_size: 2 devices .* of {samples}; allowed: multiples of 2"):
        Replicas(0, 2).share(Batch(torch.zeros(samples, 1), torch.zeros(samples)))


def test_the_shares_make_up_the_batch() -> None:
    batch = Batch({"image": torch.arange(6), "size": torch.arange(6) * 2}, [f"box {each}" for each in range(6)])
    parts = [Replicas(number, 3).share(batch) for number in range(3)]
    assert [part.inputs["size"].tolist() for part in parts] == [[0, 2], [4, 6], [8, 10]]
    assert [name for part in parts for name in part.targets] == batch.targets
    assert Replicas().share(batch) is batch


def test_no_more_than_the_share_is_read() -> None:
    read: list[int] = []

    def sample(number: int) -> tuple[Tensor, int]:
        read.append(number)
        return torch.full((3, 4, 4), float(number)), number % 2

    loader = SampleLoader(
        Samples(sample, range(16)),
        evaluation=lambda image, target: (image, target),
        training=lambda image, target: (image + torch.rand(()), target),
        batch_size=4,
        workers=0,
        seed=0,
    )
    whole = list(loader.epoch(1))
    read.clear()
    parts = [list(shared(loader, Replicas(number, 2)).epoch(1)) for number in range(2)]
    assert sorted(read) == list(range(16))
    for batch, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(batch.inputs, torch.cat([piece.inputs for piece in pieces]))


def test_alone_nothing_happens() -> None:
    here = replicas()
    assert here == Replicas(0, 1) and here.leads
    loader = tiny_data().train
    assert shared(loader, here) is loader
    figures = {"a": 1}
    assert here.mean(figures) is figures and here.led(lambda: 3) == 3
