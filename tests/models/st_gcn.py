"""ST-GCN on skeletons (batch, coordinates, frames, joints, persons) (Yan et al. 2018), as the authors' code has it.

A graph convolution sums joints by three learned-weighted adjacency matrices (an einsum), a convolution runs over time.
"""

import torch
import torch.nn.functional as F
from torch import nn

BONES = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (1, 6), (6, 7))


def adjacency(joints=8, centre=1):
    """Return the normalised adjacency of the skeleton in three parts: to itself, towards and away from the centre."""
    linked = torch.eye(joints)
    for a, b in BONES:
        linked[a, b] = linked[b, a] = 1
    hops = torch.full((joints,), float("inf"))
    hops[centre] = 0
    for _ in range(joints):
        for a, b in BONES:
            hops[a], hops[b] = min(hops[a], hops[b] + 1), min(hops[b], hops[a] + 1)
    linked = linked / linked.sum(0)
    closer, same = hops[:, None] < hops[None], hops[:, None] == hops[None]
    return torch.stack([linked * same, linked * closer, linked * ~(closer | same)])


class GraphConv(nn.Module):
    def __init__(self, inner, outer, kernel_size):
        super().__init__()
        self.kernel_size, self.conv = kernel_size, nn.Conv2d(inner, outer * kernel_size, 1)

    def forward(self, x, A):
        assert A.size(0) == self.kernel_size
        x = self.conv(x)
        n, kc, t, v = x.size()
        x = x.view(n, self.kernel_size, kc // self.kernel_size, t, v)
        x = torch.einsum("nkctv,kvw->nctw", (x, A))
        return x.contiguous(), A


class Block(nn.Module):
    def __init__(self, inner, outer, parts, stride=1, residual=True):
        super().__init__()
        self.gcn = GraphConv(inner, outer, parts)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(outer), nn.ReLU(inplace=True), nn.Conv2d(outer, outer, (9, 1), (stride, 1), (4, 0)),
            nn.BatchNorm2d(outer), nn.Dropout(0.1, inplace=True),
        )  # fmt: skip
        if not residual:
            self.residual = lambda x: 0
        elif inner == outer and stride == 1:
            self.residual = lambda x: x
        else:
            self.residual = nn.Sequential(nn.Conv2d(inner, outer, 1, (stride, 1)), nn.BatchNorm2d(outer))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x, A):
        res = self.residual(x)
        x, A = self.gcn(x, A)
        return self.relu(self.tcn(x) + res), A


class STGCN(nn.Module):
    def __init__(self, coordinates=3, classes=6):
        super().__init__()
        self.register_buffer("A", adjacency())
        parts, joints = self.A.size(0), self.A.size(1)
        self.data_bn = nn.BatchNorm1d(coordinates * joints)
        self.st_gcn_networks = nn.ModuleList((
            Block(coordinates, 16, parts, residual=False), Block(16, 16, parts),
            Block(16, 32, parts, 2), Block(32, 32, parts),
        ))  # fmt: skip
        self.edge_importance = nn.ParameterList(nn.Parameter(torch.ones(self.A.size())) for _ in self.st_gcn_networks)
        self.fcn = nn.Conv2d(32, classes, kernel_size=1)

    def forward(self, x):
        N, C, T, V, M = x.size()
        x = x.permute(0, 4, 3, 1, 2).contiguous()
        x = self.data_bn(x.view(N * M, V * C, T))
        x = x.view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous().view(N * M, C, T, V)
        for gcn, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x, _ = gcn(x, self.A * importance)
        x = F.avg_pool2d(x, x.size()[2:])
        x = x.view(N, M, -1, 1, 1).mean(dim=1)
        return self.fcn(x).view(N, -1)


EXPORT = {"exporter": "dynamo"}  # the other one lacks lists of parameters


def make():
    """Return the model."""
    return STGCN()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 3, 16, 8, 2, generator=torch.Generator().manual_seed(1)),)
