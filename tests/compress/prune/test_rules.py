"""Raw parameters that act as matrices are layers like any other."""

import torch
from torch import nn

from compress.prune.graph import build_graph


class Raw(nn.Module):
    """A gated matrix, a kernel and a stack of matrices, none of them in a layer of torch's own."""

    def __init__(self):
        super().__init__()
        self.kernel, self.gain = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.rand(8, 1, 1, 1))
        self.matrix, self.table = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(5, 12, 4))
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        y = nn.functional.conv2d(x, self.kernel * self.gain).mean((2, 3)).relu()
        y = (y @ (self.matrix / self.matrix.norm(dim=0))).relu()
        return self.head(torch.einsum("bi,kio->bko", y, self.table).flatten(1))


def test_raw_parameters_are_layers_with_outputs_and_inputs():
    model = Raw()
    graph = build_graph(model, torch.randn(1, 3, 8, 8))
    roles = {(part.tensor, part.dim): part.role for group in graph.groups for part in group.slices}
    assert roles["kernel", 0] == roles["matrix", 1] == roles["table", 2] == "out"
    assert roles["matrix", 0] == roles["table", 1] == "in"
    assert roles["gain", 0] == "vector"
    assert sorted(group.size for group in graph.groups)[-2:] == [8, 12]
