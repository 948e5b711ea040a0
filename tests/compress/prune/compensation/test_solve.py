"""The least squares of one layer against the formula of the specification, and its limits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.criteria import consumers
from compress.criteria.consumers import at_rows, columns, count_rows, features, flat_places, reproduces, spread
from compress.prune.compensation.norms import affine, folded, write
from compress.prune.compensation.solve import Normal


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_of(read: Tensor, missing: Tensor) -> Normal:
    normal = Normal(bias=True)
    for part in (slice(0, 100), slice(100, None)):
        normal.add(read[part, None], missing[part])
    return normal


def test_the_change_is_that_of_the_ridge_towards_the_old_weights() -> None:
    read, weight, bias = drawn(400, 6) + 0.5, drawn(3, 6, seed=1), drawn(3, seed=2)
    target = read @ drawn(6, 3, seed=3) + drawn(400, 3, seed=4)
    found = normal_of(read, target - read @ weight.T - bias).solved()
    x = torch.cat([read, torch.ones(400, 1)], 1)
    gram, cross = x.T @ x / 400, target.T @ x / 400
    ridge = torch.diag(torch.cat([1e-2 * gram.diagonal()[:6].mean().expand(6), torch.tensor([1e-6])]))
    old = torch.cat([weight, bias[:, None]], 1)
    new = (cross + old @ ridge) @ torch.linalg.inv(gram + ridge)
    assert torch.allclose(old + found.change[0], new, atol=1e-10)
    missed = [float((target - x @ each.T).square().sum() / 400) for each in (old, new)]
    assert torch.allclose(torch.tensor([found.before, found.after]), torch.tensor(missed), rtol=1e-6)
    assert found.after < found.before


def test_nothing_missing_changes_nothing_and_a_lost_twin_is_made_up_for() -> None:
    read, weight = drawn(500, 6), drawn(4, 6, seed=1)
    assert float(normal_of(read, torch.zeros(500, 4)).solved().change.abs().max()) < 1e-4
    read[:, 5] = read[:, 2]
    stays = [0, 1, 2, 3, 4]
    lost = read[:, 5:] @ weight[:, 5:].T
    found = normal_of(read[:, stays], lost).solved()
    energy = float((read @ weight.T).square().sum() / 500)
    assert found.after <= 1e-3 * energy < found.before


def test_rows_of_any_convolution_are_what_its_weight_multiplies() -> None:
    cases = [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, (3, 2), dilation=2, padding="same", padding_mode="reflect"), (2, 4, 9, 8)),
        (nn.Conv1d(4, 6, 5, padding=2, bias=False), (2, 4, 11)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
        (nn.Linear(5, 3), (2, 7, 5)),
    ]
    for layer, shape in cases:
        inputs = drawn(*shape).float()
        output = layer(inputs)
        rows = torch.arange(count_rows(layer, output)).flip(0)[::3]
        found = at_rows(layer, output, rows)
        assert reproduces(layer, columns(layer, inputs, output, rows), found)
        assert torch.equal(output.flatten()[flat_places(layer, output.shape, rows)], found)
        layer.weight.data[0] += 1
        assert not reproduces(layer, columns(layer, inputs, output, rows), found)


def test_of_many_inputs_the_means_over_the_kernel_are_fitted_to(monkeypatch) -> None:
    monkeypatch.setattr(consumers, "LIMIT", 6)
    layer = nn.Conv2d(5, 2, 3, bias=False).double()
    inputs = drawn(3, 5, 6, 6)
    output = layer(inputs)
    rows = torch.arange(count_rows(layer, output))
    read = columns(layer, inputs, output, rows)
    few = features(layer, read)
    assert few.shape == (len(rows), 1, 5)
    change = drawn(1, 2, 5, seed=5)
    given = at_rows(layer, output, rows) + (few @ change[0].T)[:, 0]
    layer.weight.data += spread(layer, change).reshape(layer.weight.shape)
    assert reproduces(layer, read, given)


def test_an_unfolded_layer_computes_what_the_folded_one_does_with_rows_as_long_as_before() -> None:
    layer, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    norm.running_mean, norm.running_var = drawn(4).float(), drawn(4, seed=1).float().square() + 0.1
    norm.weight.data = drawn(4, seed=2).float()
    lengths = layer.weight.flatten(1).norm(dim=1)
    weight, bias = (each * 3 for each in folded(layer, norm))
    inputs = drawn(2, 3, 7, 7).float()
    wanted = 3 * norm(layer(inputs))
    write(layer, norm, weight, bias)
    assert torch.allclose(norm(layer(inputs)), wanted, atol=1e-4)
    assert torch.allclose(layer.weight.flatten(1).norm(dim=1), lengths, rtol=1e-5)
    assert bool((affine(norm)[0] > 0).all())
