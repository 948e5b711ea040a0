"""Modern Hopfield layers on a bag of instances (batch, instances, features) (Ramsauer et al. 2021), as in hflayers.

Association (state and stored patterns from the bag, retrieved in several steps), a layer whose stored patterns are
learned, and pooling by a learned state pattern; each with layer norms, several heads and a scale beta.
"""

import torch
from torch import nn


class HopfieldCore(nn.Module):
    """Retrieval: the state goes to softmax(beta state stored^T) stored, some steps long, then to the projection."""

    def __init__(self, width, heads, beta, steps):
        super().__init__()
        self.heads, self.head_dim, self.steps = heads, width // heads, steps
        self.beta = self.head_dim**-0.5 if beta is None else beta
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x):
        return x.contiguous().view(x.shape[0], -1, self.heads, self.head_dim).transpose(1, 2).flatten(0, 1)

    def forward(self, stored, state, projected):
        q, k, v = self.split(self.q(state)), self.split(self.k(stored)), self.split(self.v(projected))
        for step in range(self.steps + 1):
            weights = torch.softmax(torch.bmm(self.beta * q, k.transpose(1, 2)), dim=-1)
            if step < self.steps:
                q = torch.bmm(weights, k)
        batch, states, _ = state.shape
        read = torch.bmm(weights, v).view(batch, self.heads, states, self.head_dim).transpose(1, 2)
        return self.out(read.reshape(batch, states, self.heads * self.head_dim))


class Hopfield(nn.Module):
    def __init__(self, width, heads=4, beta=None, steps=0):
        super().__init__()
        self.norm_stored, self.norm_state, self.norm_projected = (nn.LayerNorm(width) for _ in range(3))
        self.core = HopfieldCore(width, heads, beta, steps)

    def forward(self, stored, state, projected):
        return self.core(self.norm_stored(stored), self.norm_state(state), self.norm_projected(projected))


class HopfieldLayer(nn.Module):
    """Stored patterns and what they are projected to are learned."""

    def __init__(self, width, quantity, heads=4, beta=None):
        super().__init__()
        self.lookup, self.target = (nn.Parameter(torch.randn(1, quantity, width)) for _ in range(2))
        self.hopfield = Hopfield(width, heads, beta)

    def forward(self, x):
        return self.hopfield(self.lookup.repeat(x.shape[0], 1, 1), x, self.target.repeat(x.shape[0], 1, 1))


class HopfieldPooling(nn.Module):
    """State patterns are learned: one for each vector that is pooled."""

    def __init__(self, width, quantity=2, heads=4, beta=None):
        super().__init__()
        self.pooling = nn.Parameter(torch.randn(1, quantity, width))
        self.hopfield = Hopfield(width, heads, beta)

    def forward(self, x):
        return self.hopfield(x, self.pooling.repeat(x.shape[0], 1, 1), x).flatten(1)


class Net(nn.Module):
    def __init__(self, features=20, width=48, classes=3):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, width))
        self.association = Hopfield(width, steps=2)
        self.layer, self.pooling = HopfieldLayer(width, 12, beta=0.5), HopfieldPooling(width)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(2 * width, classes))

    def forward(self, x):
        x = self.embed(x)
        x = x + self.association(x, x, x)
        x = x + self.layer(x)
        return self.head(self.pooling(x))


def make():
    """Return the model."""
    return Net()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 9, 20, generator=torch.Generator().manual_seed(1)),)
