"""Masks hold through training, through the optimiser's memory, and through a file."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from compress.core.errors import InputError
from compress.training.masks import MaskKeeper, apply_masks


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(96, 5))


@pytest.fixture
def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0, keeper: MaskKeeper | None = None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        images = torch.randn(4, 3, 6, 6, generator=generator)
        nn.functional.cross_entropy(model(images), torch.randint(5, (4,), generator=generator)).backward()
        if keeper is not None:
            keeper.before_step()
        optimizer.step()
        if keeper is not None:
            keeper.after_step(optimizer)


def _state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state[parameter].items()
    return {key: value for key, value in state if isinstance(value, torch.Tensor) and value.shape == parameter.shape}


def test_apply_masks_zeroes_the_removed_and_leaves_the_rest_bit_identical(model, masks):
    before = deepcopy(model.state_dict())
    apply_masks(model, masks)
    for name, value in model.state_dict().items():
        mask = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[mask], before[name][mask])
        assert (value[~mask] == 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keeper_holds_zeros_and_clears_the_optimiser_after_dense_training(model, masks, name):
    optimizer = OPTIMIZERS[name](model.parameters())
    _train(model, optimizer, 3)  # momentum of a dense run is what would push the masked weights
    _train(model, optimizer, 3, seed=1, keeper=MaskKeeper(model, masks))
    for key, mask in masks.items():
        parameter = model.get_parameter(key)
        assert (parameter[~mask] == 0).all() and (parameter[mask] != 0).all()
        assert (parameter.grad[~mask] == 0).all()
        state = _state_of(optimizer, parameter)
        assert state and all((value[~mask] == 0).all() for value in state.values())


def test_adamw_moves_masked_weights_without_the_keeper(model, masks):
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    apply_masks(model, masks)
    _train(model, optimizer, 2)
    assert any((model.get_parameter(key)[~mask] != 0).any() for key, mask in masks.items())


def test_kept_weights_train_as_if_the_removed_did_not_exist(model, masks):
    """The same trajectory as a model whose masked weights are multiplied by the mask in the forward pass."""

    class Masked(nn.Module):
        def __init__(self, mask: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.mask

    apply_masks(model, masks)
    twin = deepcopy(model)
    nn.utils.parametrize.register_parametrization(twin[0], "weight", Masked(masks["0.weight"]))
    nn.utils.parametrize.register_parametrization(twin[2], "weight", Masked(masks["2.weight"]))
    ours, theirs = (OPTIMIZERS["adamw"](net.parameters()) for net in (model, twin))
    _train(model, ours, 5, keeper=MaskKeeper(model, masks))
    _train(twin, theirs, 5)
    for index in (0, 2):
        torch.testing.assert_close(model[index].weight, twin[index].weight)


def test_before_step_masks_gradients_for_clipping(model, masks):
    keeper = MaskKeeper(model, masks)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    keeper.before_step()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert norm.item() == pytest.approx((sum(p.numel() for p in model.parameters()) - removed) ** 0.5)


def test_masks_that_fit_no_parameter_are_refused_all_at_once(model):
    wrong = {"0.weight": torch.ones(2, 2, dtype=torch.bool), "gone.weight": torch.ones(1, dtype=torch.bool)}
    with pytest.raises(InputError) as caught:
        apply_masks(model, wrong)
    assert len(caught.value.problems) == 2
