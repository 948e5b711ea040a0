"""A plan's module is a copy of the other: what modules hold besides tensors is copied as `copy.deepcopy` does it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

from compress.graph.apply import apply
from compress.graph.plan import Plan


class Listed(nn.Module, list):
    """A module and a list at once."""

    __hash__ = nn.Module.__hash__


class Counted(nn.Module):
    """Says itself how it is copied."""

    def __init__(self, copies=0):
        super().__init__()
        self.copies = copies

    def __deepcopy__(self, memo):
        return Counted(self.copies + 1)


class Pickled(nn.Module):
    """Leaves something out of its state."""

    def __getstate__(self):
        return {**vars(self), "handle": None}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = parametrizations.weight_norm(nn.Linear(8, 4))
        self.parts = [self.conv, {"norm": self.norm}]
        self.seen, self.also_seen = (shared := []), shared
        self.sizes = {"heads": [2, 4]}
        self.listed, self.counted, self.pickled = Listed(), Counted(), Pickled()
        list.append(self.listed, 7)
        self.pickled.handle = object()
        self.conv.owner = [self]  # a circle
        self.conv.register_forward_hook(lambda module, inputs, output: self.seen.append(1) or output)

    def forward(self, x):
        return self.norm(self.conv(x).mean((2, 3)))


def test_what_modules_hold_is_copied_as_deepcopy_does():
    net = Net()
    for small in (apply(Plan(), net), copy.deepcopy(net)):
        assert [type(module) for module in small.modules()] == [type(module) for module in net.modules()]
        assert not {id(module) for module in small.modules()} & {id(module) for module in net.modules()}
        assert small.parts[0] is small.conv
        assert small.parts[1]["norm"] is small.norm
        assert small.conv.owner[0] is small
        assert small.seen is small.also_seen
        assert small.seen is not net.seen
        assert small.sizes == net.sizes
        assert small.sizes["heads"] is not net.sizes["heads"]
        assert list(small.listed) == [7]
        assert small.counted.copies == 1
        assert small.pickled.handle is None
        assert small.conv._forward_hooks is not net.conv._forward_hooks
        x = torch.randn(1, 3, 5, 5)
        assert torch.equal(small(x), net(x))
        with torch.no_grad():
            small.conv.weight.zero_()
        assert net.conv.weight.any()
