from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from evaluators.candidates.zero_cost import grad_norm, jacov, naswot, synflow
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT


class Small(nn.Module):
    """Two linear layers with whatever stands between them, on images of two pixels."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
        self.between = nn.Sequential(*between)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
            self.second.weight.copy_(torch.tensor([[-1.0, 4.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(self.between(self.first(images.flatten(1))))
        return logits


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_synflow_is_the_sum_over_paths_once_per_layer() -> None:
    # paths: |1||-1| + |-2||-1| + |3||4| + |0.5||4| = 1 + 2 + 12 + 2 = 17, and each of two layers sees them all
    for between in ([], [nn.ReLU()], [nn.BatchNorm1d(2), nn.ReLU6()], [nn.Hardswish(inplace=True)], [nn.LayerNorm(2)]):
        assert synflow(Small(*between), (1, 1, 2)) == pytest.approx(math.log(2 * 17))


def test_synflow_goes_beyond_float64() -> None:
    layers = [nn.Linear(1, 1, bias=False) for _ in range(60)]
    for layer in layers:
        nn.init.constant_(layer.weight, -1e10)
    model = nn.Sequential(nn.Flatten(), *layers)
    assert synflow(model, (1, 1, 1)) == pytest.approx(math.log(60) + 600 * math.log(10))


def test_grad_norm_is_that_of_the_cross_entropy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    images, labels = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.tensor([0])
    # logits 0: probabilities 1/2 each, so the gradient's rows are -1/2 and 1/2 times the image, whose length is 5
    assert grad_norm(model, Batch(images, labels), DEFAULT.bind(3, (3, 6, 6))) == pytest.approx(math.sqrt(2) * 0.5 * 5)


def test_naswot_counts_the_units_that_agree() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        linear.bias.zero_()
    images = torch.tensor([[1.0, 1.0], [1.0, -3.0], [-1.0, 2.0]]).view(3, 1, 1, 2)
    # codes 111, 100, 011: agreements 3 on the diagonal; 1, 2, 0 beside it
    kernel = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 0.0], [2.0, 0.0, 3.0]], dtype=torch.float64)
    assert naswot(model, images) == pytest.approx(float(torch.logdet(kernel)))


def test_naswot_meets_functions_and_other_activations() -> None:
    class Functional(nn.Module):
        def __init__(self, activation: object) -> None:
            super().__init__()
            self.activation = activation
            self.linear = nn.Linear(4, 6)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.activation(self.linear(images.flatten(1)))  # type: ignore[operator]
            return result

    torch.manual_seed(0)
    images = torch.randn(5, 1, 2, 2)
    reference = Functional(F.relu)
    for activation in (F.relu6, F.hardswish, F.silu, F.gelu, F.leaky_relu, F.elu, F.mish, nn.ReLU(inplace=True)):
        other = Functional(activation)
        other.linear.load_state_dict(reference.linear.state_dict())
        assert naswot(other, images) == pytest.approx(naswot(reference, images)), activation


def test_naswot_of_a_network_without_units_is_an_error() -> None:
    with pytest.raises(InputError, match="naswot: the network has no ReLU"):
        naswot(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), torch.randn(2, 1, 1, 2))


def test_jacov_prefers_networks_that_answer_images_apart() -> None:
    class Products(nn.Module):
        """Each image's gradient is the next image: uncorrelated ones give an identity matrix."""

        def forward(self, images: Tensor) -> Tensor:
            return (images * images.detach().roll(1, 0)).flatten(1).sum(1, keepdim=True)

    apart = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]]).view(2, 1, 2, 2)
    k = 1e-5
    assert jacov(Products(), apart) == pytest.approx(-2 * (math.log(1 + k) + 1 / (1 + k)))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))  # the same gradient for every image: eigenvalues 2 and 0
    expected = -(math.log(2 + k) + 1 / (2 + k) + math.log(k) + 1 / k)
    assert jacov(linear, apart) == pytest.approx(expected, rel=1e-3)
    nn.init.zeros_(linear[1].weight)  # type: ignore[arg-type]
    assert jacov(linear, apart) == pytest.approx(expected, rel=1e-3)


def test_scores_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)
    )
    before, images = state(model), torch.randn(4, 3, 4, 4)
    batch = Batch(images, torch.tensor([0, 1, 0, 1]))
    first = (synflow(model, (3, 4, 4)), grad_norm(model, batch, DEFAULT.bind(2, (3, 4, 4))), jacov(model, images))
    again = (synflow(model, (3, 4, 4)), grad_norm(model, batch, DEFAULT.bind(2, (3, 4, 4))), jacov(model, images))
    naswot(model, images)
    assert first == again and same(model, before) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def convolutional(normed: bool = True) -> nn.Module:
    """Two convolutions with a shortcut around one; `normed`: with batch norms."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) if normed else nn.Identity() for _ in range(2))

        def forward(self, images: Tensor) -> Tensor:
            x = torch.relu(self.norms[0](self.stem(images)))
            x = torch.relu(x + self.norms[1](self.conv(x)))
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    return Net()


def test_synflow_is_that_of_the_publication_on_a_residual_network() -> None:
    model, bare = convolutional(), convolutional(normed=False).double()
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if "norms" not in name})
    for name, parameter in bare.named_parameters():
        parameter.data = torch.zeros_like(parameter) if name.endswith("bias") else parameter.data.abs()
    bare(torch.ones(1, 3, 6, 6, dtype=torch.float64)).sum().backward()
    weights = [parameter for name, parameter in bare.named_parameters() if name.endswith("weight")]
    expected = sum(float((weight.detach() * weight.grad).sum()) for weight in weights if weight.grad is not None)
    assert synflow(model, (3, 6, 6)) == pytest.approx(math.log(expected))


def test_grad_norm_is_a_sum_over_layers_with_the_batchs_statistics() -> None:
    model, images, labels = convolutional(), torch.randn(8, 3, 6, 6), torch.arange(8) % 3
    trained = copy.deepcopy(model).train()
    F.cross_entropy(trained(images), labels).backward()
    weights = [trained.get_parameter(f"{name}.weight") for name in ("stem", "conv", "head")]
    expected = sum(float(weight.grad.square().sum().sqrt()) for weight in weights if weight.grad is not None)
    assert grad_norm(model, Batch(images, labels), DEFAULT.bind(3, (3, 6, 6))) == pytest.approx(expected, rel=1e-5)


def test_jacov_is_that_of_numpys_correlations() -> None:
    model, images = convolutional(), torch.randn(8, 3, 6, 6)
    inputs = images.clone().requires_grad_(True)
    copy.deepcopy(model).train()(inputs).backward(torch.ones(8, 3))
    assert inputs.grad is not None
    values = np.linalg.eigvals(np.corrcoef(inputs.grad.reshape(8, -1).double().numpy())).real
    expected = -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))
    assert jacov(model, images) == pytest.approx(expected, rel=1e-4)


def test_naswot_is_the_hamming_kernel_of_all_activations() -> None:
    model, images = convolutional(), torch.randn(6, 3, 6, 6)
    seen: list[Tensor] = []
    other = copy.deepcopy(model).train()
    real = torch.relu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", lambda x: (seen.append(x), real(x))[1])
        other(images)
    codes = torch.cat([(x > 0).flatten(1) for x in seen], dim=1)
    agree = [[int((one == two).sum()) for two in codes] for one in codes]  # units minus Hamming distance
    _, expected = np.linalg.slogdet(np.array(agree, dtype=float))
    assert naswot(model, images) == pytest.approx(expected)
