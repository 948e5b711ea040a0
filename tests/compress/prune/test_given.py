"""`compress.plan` and `compress.apply` from a notebook: batches of own loaders, modules as they are handed over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import compress
from compress.core.errors import InputError

IMAGES, LABELS = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 5


class Net(nn.Module):
    def __init__(self, outputs: int = 5, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 32, 3, padding=1)
        self.head = nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def plan(model: Any, batches: Any = None, criterion: str = "taylor", **options: Any) -> Any:
    return compress.plan(model, IMAGES, criterion, {"macs": 0.5}, align=1, batches=batches, **options)


@pytest.mark.parametrize("labels", [LABELS, LABELS.int(), LABELS.byte(), torch.eye(5)[LABELS]])
def test_loaders_lists_and_functions_are_the_same_batches(labels: Tensor) -> None:
    loader = DataLoader(TensorDataset(IMAGES, labels), batch_size=10)
    plans = [
        plan(Net(), each) for each in (loader, lambda: loader, [(IMAGES, labels)], lambda: iter([[IMAGES, labels]]))
    ]
    assert all(each == plans[0] for each in plans)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (((IMAGES, LABELS) for _ in range(2)), "a generator is used up after one pass"),
        ([], "there are none"),
        (lambda: [], "there are none"),
        ([(IMAGES, LABELS, torch.ones(10))], "got 3 values"),
        ([{"x": IMAGES, "y": LABELS}], "got a dictionary with x, y"),
        ([IMAGES], "got a Tensor alone"),
        ([(IMAGES, LABELS.tolist())], "targets are a list"),
        ([(IMAGES, {"label": LABELS})], "targets are a dict"),
        ([(IMAGES, torch.randn(10, 5))], "are no probabilities; .* task='regression'"),
        ([(IMAGES, LABELS.float())], "are no probabilities"),
        ([(IMAGES, LABELS[:, None])], "shape \\(10, 1\\)"),
        ([(IMAGES, LABELS[:4])], "10 inputs have targets of shape \\(4,\\)"),
        ([(IMAGES, LABELS), (IMAGES, LABELS + 1)], "there is the class 5; allowed 0 to 4"),
        ([(IMAGES, LABELS - 1)], "there is the class -1"),
        ([(IMAGES.byte(), LABELS)], "inputs: uint8 \\(10, 3, 8, 8\\)"),
        ([(IMAGES * float("nan"), LABELS)], "loss .* is nan on the first"),
        ([(IMAGES, LABELS), (IMAGES * float("nan"), LABELS)], "cannot be scored: NaN"),
    ],
)
def test_batches_that_rank_nothing_are_refused(batches: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(Net(), batches)


def test_numbers_are_learnt_from_by_their_task() -> None:
    """One output under cross entropy has no gradient: units were removed by no measure at all, without a word."""
    batches = [(IMAGES, torch.randn(10, 1, generator=torch.Generator().manual_seed(1)))]
    with pytest.raises(InputError, match=r"one number a sample.* task regression"):
        plan(Net(1), [(IMAGES, LABELS * 0)])
    with pytest.raises(InputError, match="unknown task 'regresion'"):
        plan(Net(1), batches, task="regresion")
    assert plan(Net(1), batches, task="regression") != plan(Net(1), None, "magnitude")
    assert plan(Net(1), batches, task={"name": "regression", "loss": "l1"}).macs[1] > 0


def test_a_loss_that_no_unit_has_a_part_in_is_refused() -> None:
    model = Net()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(InputError, match="depends on no unit"):
        plan(model, [(IMAGES, LABELS)])


def test_calibration_batches_limits_them() -> None:
    few, many = [(IMAGES, LABELS)], [(IMAGES, LABELS), (IMAGES.flip(0) * 3, LABELS)]
    assert plan(Net(), many, calibration_batches=1) == plan(Net(), few)


@pytest.mark.parametrize("option", [{"steps": 3}, {"compensate": True}, {"sensitivity": True}, {"bn_batches": 5}])
def test_what_only_a_stage_does_is_not_passed_over(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        plan(Net(), criterion="magnitude", **option)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Net, "got the class Net; allowed an nn.Module, such as Net()"),
        (Net().state_dict(), "got a OrderedDict"),
        (
            nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyConv2d(8, 3)),
            "'0.weight' is of a lazy layer, which has no weights yet",
        ),
        (Net().to("meta"), "on the device meta"),
    ],
)
def test_what_is_no_model_with_weights_is_refused(model: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(model, criterion="magnitude")


def test_a_module_compiled_in_place_gives_a_small_one_that_runs_itself() -> None:
    """The copy called the code of the model that it was copied from."""
    model = Net()
    model.compile(backend="eager")
    model.second.compile(backend="eager")
    made = plan(model, criterion="magnitude")
    small, plain = compress.apply(made, model), compress.apply(made, Net())
    assert torch.equal(small(IMAGES), plain(IMAGES))
    assert not torch.allclose(small(IMAGES), model(IMAGES))


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "setting",
    [torch.inference_mode, lambda: default_device("meta"), lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["inference mode", "default device", "autocast"],
)
def test_whatever_the_caller_has_set(setting: Any) -> None:
    model, images = Net(), IMAGES.clone()
    with setting():
        found = plan(model, [(images, LABELS)])
        small = compress.apply(found, model)
    assert found == plan(model, [(IMAGES, LABELS)])
    small(IMAGES).sum().backward()
    assert all(each.grad is not None and each.device.type == "cpu" for each in small.parameters())


def test_a_plan_is_for_one_width() -> None:
    """Positions of 16 also exist among 32: the model of another width came out mangled."""
    made = plan(Net(), criterion="magnitude")
    for model in (Net(width=32), compress.apply(made, Net())):
        with pytest.raises(InputError, match="another architecture"):
            compress.apply(made, model)
    with pytest.raises(InputError, match="got a Net; allowed a plan"):
        compress.apply(model, made)
    again = type(made).from_dict(made.to_dict())
    assert again == made
    assert compress.apply(again, Net(7)).head.out_features == 7


def test_a_forward_that_was_replaced() -> None:
    """A function in its place holds the module that it was made for, and so ran the wide one in the narrowed copy."""
    compiled, closed = Net(), Net()
    compiled.forward = torch.compile(compiled.forward, backend="eager")  # type: ignore[method-assign]
    compiled.second.forward = torch.compile(compiled.second.forward, backend="eager")  # type: ignore[method-assign]
    small = compress.apply(plan(compiled, criterion="magnitude"), compiled)
    plain = compress.apply(plan(Net(), criterion="magnitude"), Net())
    assert torch.equal(small(IMAGES), plain(IMAGES))
    wide = closed.forward
    closed.forward = lambda x: wide(x) * 2  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"the forward of '\(top\)' was replaced by a function"):
        plan(closed, criterion="magnitude")
