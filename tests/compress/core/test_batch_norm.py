from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from compress.core.batch_norm import by_batch, norm_layers, recalibrate

NORMS = [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d]


def make(norm: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 1), norm(5))


def images(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 + 3 * torch.randn(8, 3, 6, 6, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_become_the_average_over_batches(norm: type[nn.Module]) -> None:
    model = make(norm).train()
    model[1].running_mean.fill_(100)
    batches = images()
    assert recalibrate(model, batches, limit=3) == 3
    seen = torch.stack([model[0](batch) for batch in batches[:3]])
    assert torch.allclose(model[1].running_mean, seen.mean((0, 1, 3, 4)), atol=1e-5)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in seen]).mean(0)
    assert torch.allclose(model[1].running_var, variances, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_modes_momenta_and_weights_stay(norm: type[nn.Module]) -> None:
    model = make(norm)
    model[4].eval()
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    recalibrate(model, images(), limit=10)
    assert [module.training for module in model.modules()] == modes
    assert [layer.momentum for layer in norm_layers(model)] == [0.1, 0.1]
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))


def test_dropout_stays_off() -> None:
    model = make(nn.BatchNorm2d)
    recalibrate(model, images(), limit=4)
    first = model[4].running_var.clone()
    recalibrate(model, images(), limit=4)
    assert torch.equal(first, model[4].running_var)


def test_without_batches_or_after_an_error_the_old_statistics_stay() -> None:
    model = make(nn.BatchNorm2d)
    model[1].running_mean.fill_(7)
    assert recalibrate(model, [], limit=5) == 0
    assert model[1].running_mean.tolist() == [7] * 4
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(model, [*images(1), torch.zeros(1, 2, 6, 6)], limit=5)
    assert model[1].running_mean.tolist() == [7] * 4


def test_a_model_without_batch_norm_is_not_run() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    assert norm_layers(model) == []
    assert recalibrate(model, ["not even images"], limit=5) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_norms_can_go_by_the_batch_and_remember_nothing(norm: type[nn.Module]) -> None:
    model = make(norm).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    batch = images(1)[0]
    with torch.no_grad(), by_batch(model):
        first, again = model(batch), model(batch)
    twin = copy.deepcopy(model).train()
    twin[2].eval()
    assert torch.equal(first, twin(batch))
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
