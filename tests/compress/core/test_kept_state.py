"""A model is given back all that it held before it was run, without a copy of its weights."""

from collections import deque
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.core.kept_state import _Held, state_kept


class Cache:
    """An object of the model's own code."""

    def __init__(self):
        self.entries = {}


class Holding(nn.Module):
    """Has something of every kind that a pass may change."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.norm, self.spare = nn.BatchNorm1d(3), [nn.Linear(3, 3)]
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.ones(3))
        self.plain, self.count, self.last = torch.zeros(4), 0, None
        self.by_size, self.seen, self.queue, self.names = {2: torch.zeros(2)}, [1], deque([1, 2], 2), {"a"}
        self.nested, self.space, self.cache = {"deep": [[0]]}, SimpleNamespace(step=0), Cache()

    @lru_cache(4)  # noqa: B019
    def total(self):
        """Return the sum of the weights."""
        return self.weight.sum()


def assign(model):
    model.count += 1
    model.last = model.weight * 2
    del model.plain


def fill(model):
    model.by_size[3] = torch.ones(3)
    model.by_size[2] = None
    model.seen[:] = [2, 3]
    model.queue.append(3)
    model.names.add("b")


def deeply(model):
    model.nested["deep"][0].append(1)
    model.space.step = 5
    model.cache.entries["a"] = 1
    model.spare[0].bias.data.zero_()


def write(model):
    model.calls += 1
    model.mean[1:].mul_(3)
    model.plain.view(2, 2)[0].fill_(7)
    torch._foreach_add_([model.by_size[2], model.mean], 1.0)
    torch.add(model.mean, 1, out=model.mean)


def write_behind(model):
    model.weight.data.copy_(torch.ones(2, 3))
    F.batch_norm(torch.randn(8, 3), model.norm.running_mean, model.norm.running_var, training=True)


def change_modules(model):
    model.register_buffer("mask", torch.ones(2), persistent=False)
    model.extra = nn.Linear(2, 2)
    model.mean = torch.zeros(5)
    model.weight = nn.Parameter(torch.zeros(1))
    del model.norm


def change_memory(model):
    model.weight.data = torch.zeros(7)
    model.calls.resize_(9).fill_(1)
    model.mean.t_()
    model.plain.set_(torch.ones(2))


def fail(model):
    model.calls += 1
    raise KeyError


WAYS = (assign, fill, deeply, write, write_behind, change_modules, change_memory, fail)


def everything(value):
    """Return what is in a value, with the identity and the numbers of what it holds."""
    if isinstance(value, torch.Tensor):
        return id(value), value.tolist()
    if isinstance(value, (nn.Module, SimpleNamespace, Cache)):
        return id(value), everything(vars(value))
    if isinstance(value, dict):
        return id(value), [(key, everything(each)) for key, each in value.items()]
    return (id(value), list(map(everything, value))) if isinstance(value, (list, set, deque)) else value


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_pass_changes_is_put_back(way):
    model = Holding()
    before = everything(model)
    try:
        with torch.no_grad(), state_kept(model):
            way(model)
            assert everything(model) != before
    except KeyError:
        assert way is fail
    assert everything(model) == before
    assert list(model.state_dict()) == list(Holding().state_dict())


def test_what_methods_keep_of_their_results_is_computed_anew():
    model = Holding()
    assert model.total() == 15
    with torch.no_grad(), state_kept(model):
        model.weight.zero_()
        assert model.total() == 0
    assert model.total() == 15


def test_only_what_is_written_to_is_copied():
    model = Holding().eval()
    held = _Held(model)
    with torch.no_grad(), held.writes:
        model.norm(model.weight).relu_()
        assert not held.writes.saved
        model.calls += 1
    assert len(held.writes.saved) == 1
    held.put_back()
    assert not model.calls.any()


def test_a_model_under_training_learns_within():
    """What backward passes and their graphs need stays."""
    model = Holding()
    with state_kept(model):
        model.weight.square().sum().backward()
    assert torch.equal(model.weight.grad, 2 * model.weight)


def test_layers_that_the_first_call_makes_stay():
    model = nn.LazyLinear(4)
    with torch.no_grad(), state_kept(model):
        model(torch.ones(1, 3))
    assert model.weight.shape == (4, 3)
    assert model(torch.ones(1, 3)).shape == (1, 4)
