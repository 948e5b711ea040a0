from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compress.core.tensors import call, called, hiding, mapped, named_tensors, tensors_in

a, b, c = (torch.full((2,), float(value)) for value in range(3))
Pair = namedtuple("Pair", ("left", "right"))


@dataclass
class Found:
    logits: torch.Tensor
    states: tuple | None = None


class Own:
    """An object that refers to itself."""

    __slots__ = ("__dict__", "logits")

    def __init__(self, logits, **more):
        self.logits = logits
        self.__dict__.update(more, whole=self)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (a, ["logits"]),
        ((a, b), ["output_0", "output_1"]),
        ([a, [b, c]], ["output_0", "output_1_0", "output_1_1"]),
        ({"boxes": [a, b], "masks": c}, ["boxes_0", "boxes_1", "masks"]),
        (OrderedDict(seg={"low": a, "high": b}, depth=c), ["seg_low", "seg_high", "depth"]),
        ({"a": [a], "a_0": b}, ["a_0", "a_0_"]),
        (Pair(a, b), ["left", "right"]),
        (Found(a, (b, c)), ["logits", "states_0", "states_1"]),
        ((a, None, 3, "text"), ["output_0"]),
        ([{"boxes": a}], ["output_0_boxes"]),
        (SimpleNamespace(logits=a, more=[b]), ["logits", "more_0"]),
        ((a, Own(b, boxes=deque([c]))), ["output_0", "output_1_logits", "output_1_boxes_0"]),
        ({"a": a}.values(), ["output_0"]),
    ],
)
def test_tensors_are_found_and_named_by_where_they_lie(value, names):
    found = named_tensors(value, "logits", "output")
    assert list(found) == names
    assert all(one is other for one, other in zip(found.values(), tensors_in(value), strict=True))


class Attributes(dict):
    """A dictionary whose values are attributes as well."""

    def __getattr__(self, name):
        return self[name]


def test_mapping_keeps_dataclasses_and_kinds_of_dictionaries_and_leaves_the_first_ones_alone():
    value = [Found(a, (b,)), Attributes(x=c)]
    found, given = mapped(value, lambda each: each + 1)
    assert isinstance(found, Found) and found.logits[0] == 1 and found.states[0][0] == 2
    assert isinstance(given, Attributes) and given.x[0] == 3
    assert value[0].logits is a and value[1]["x"] is c
    assert called(lambda pair: pair.left, Pair(a, b)) is a  # one argument


def test_mapping_keeps_the_structure():
    found = mapped({"x": [a, (b, 5)], "y": Pair(c, None)}, lambda each: each + 1)
    assert found["x"][1][1] == 5 and isinstance(found["x"][1], tuple)
    assert isinstance(found["y"], Pair) and found["y"].right is None
    assert [each[0].item() for each in tensors_in(found)] == [1, 2, 3]


class Doubling(nn.Module):
    def forward(self, x, scale=None):
        return x.mul_(2) if scale is None else x.mul_(scale)


def test_a_module_that_changes_its_input_gets_one_of_its_own():
    model, x = Doubling(), torch.ones(2)
    for inputs, factor in ((x, 2), ((x,), 2), ((x, torch.tensor(3.0)), 3), ({"x": x, "scale": torch.tensor(4.0)}, 4)):
        assert torch.equal(call(model, inputs), factor * torch.ones(2))
    assert torch.equal(x, torch.ones(2))


class Stacking(nn.Module):
    def forward(self, images):
        assert isinstance(images, list)
        return torch.stack(images).sum(0)


def test_a_list_is_one_argument_as_detectors_take_images():
    assert torch.equal(call(Stacking(), [b, c]), b + c)
    assert torch.equal(called(Stacking(), [b, c]), b + c)


def test_objects_are_mapped_to_new_ones_of_their_class():
    value = Own(a, boxes=deque([b, "text"]))
    doubled = mapped(value, lambda each: each + 1)
    assert type(doubled) is Own and torch.equal(doubled.logits, a + 1) and doubled.boxes[1] == "text"
    assert torch.equal(doubled.boxes[0], b + 1) and value.logits is a and value.boxes[0] is b
    nothing = SimpleNamespace(number=3)
    assert mapped(nothing, lambda each: each + 1) is nothing


def test_what_hides_tensors_is_named():
    assert hiding((a, {"b": SimpleNamespace(c=[None, 3, "text", Own(b)])})) is None
    assert hiding({"a": a, "more": (each for each in (a,))}) == "generator"
    assert hiding(Own(a, places={3})) == "set"
    assert hiding([a.numpy()]) == "ndarray"
