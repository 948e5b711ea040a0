from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import compress
from compress.core.errors import InputError
from compress.core.wrappers import unwrap_all, unwrapped


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, AveragedModel, lambda model: torch.compile(nn.DataParallel(model))],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_a_wrapped_model_is_narrowed_as_the_module_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, images = wrap(net()), torch.randn(1, 3, 8, 8)
    plan = compress.plan(model, images, criterion="magnitude", budget={"macs": 0.5})
    small = compress.apply(plan, model)
    assert type(small) is nn.Sequential and "0.weight" in plan.kept
    assert small(images).shape == (1, 10)
    assert type(compress.apply(plan, unwrapped(model))) is nn.Sequential


def test_modules_compiled_inside_a_model_are_plain_again() -> None:
    model = net()
    model[2] = torch.compile(model[2])
    model[3].compile()
    inner = unwrap_all(nn.DataParallel(model))
    assert [type(module) for module in inner.modules()] == [type(module) for module in net().modules()]
    assert all(module._compiled_call_impl is None for module in inner.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused_by_name() -> None:
    images = torch.randn(1, 3, 8, 8)
    inside = net()
    inside[2] = torch.jit.script(inside[2])
    for model, what in (
        (torch.jit.script(net()), "the model is TorchScript"),
        (torch.jit.trace(net(), images), "the model is TorchScript"),
        (inside, "layer '2' of the model is TorchScript"),
    ):
        with pytest.raises(InputError, match=what):
            compress.plan(model, images, criterion="magnitude", budget={"macs": 0.5})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_layers_that_torch_has_quantized_are_refused_by_name() -> None:
    floats = nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.FloatFunctional())
    assert unwrapped(floats) is floats
    with pytest.raises(InputError, match=r"layer '1' of the model \(Linear\) is quantized by torch"):
        unwrapped(nn.Sequential(nn.Linear(2, 2), torch.ao.nn.quantized.Linear(2, 2)))
