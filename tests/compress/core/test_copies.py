"""Copies of modules whose functions hold parts of them."""

import weakref
from functools import partial

import torch
from torch import nn

from compress.core.copies import copied


class Net(nn.Module):
    """Lambdas, hooks and references over the model, of all kinds."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain = nn.Linear(3, 3), nn.Parameter(torch.ones(1))
        self.seen = []
        self.layer.register_forward_hook(lambda module, inputs, output: self.seen.append(output))
        gain, hidden = self.gain, [self.layer]

        def counted(n):
            return self.gain if n == 0 else counted(n - 1)

        self.by_self = lambda x: torch.tanh(x * self.gain)
        self.by_default = lambda x, k=2, *, layer=self.layer: layer(x * gain) * k
        self.by_list = lambda x: hidden[0](x)
        self.by_itself, self.by_call = counted, partial(counted, 2)
        self.table = {"steps": [(self.by_self,)]}
        self.parent = weakref.ref(self)
        self.plain = lambda x: x + 1

    def forward(self, x):
        y = self.layer(x) + self.by_self(x) + self.by_default(x) + self.by_list(x) + self.by_itself(3) * self.by_call()
        return self.plain(y + self.parent().layer(x) + self.table["steps"][0][0](x) + self.seen[-1])


@torch.no_grad()
def test_functions_and_weak_references_in_a_copy_hold_its_own_parts():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3)
    expected = model(x)
    copy = copied(model)
    again = copied(copy)
    for parameter in copy.parameters():
        parameter.mul_(2)
    assert torch.equal(model(x), expected) and torch.equal(again(x), expected)
    seen = len(model.seen)
    assert not torch.equal(copy(x), expected) and len(model.seen) == seen
    copy.gain.zero_()
    assert copy.by_self(x).abs().max() == copy.table["steps"][0][0](x).abs().max() == 0
    assert copy.by_itself(4) is copy.by_call() is copy.gain and model.by_itself(4) is model.gain
    assert copy.parent() is copy and copy.by_self is copy.table["steps"][0][0]


def test_functions_that_hold_nothing_of_the_model_are_shared_and_the_model_keeps_its_own():
    model = Net()
    before = {name: value for name, value in vars(model).items() if callable(value)}
    copy = copied(model)
    assert copy.plain is model.plain and copy.by_self.__qualname__ == model.by_self.__qualname__
    assert all(vars(model)[name] is value for name, value in before.items())
    model.parent = weakref.ref(nn.Linear(1, 1))  # of something that is gone
    assert copied(model).parent() is None
