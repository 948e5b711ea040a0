"""Set Transformer on (batch, elements, features) (Lee et al. 2019), attention as the authors' code has it.

Heads are cut off the features and joined along the batch; inducing points (ISAB) and seeds (PMA) are learned.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MAB(nn.Module):
    def __init__(self, dim_q, dim_k, dim_v, num_heads, ln=False):
        super().__init__()
        self.dim_V, self.num_heads = dim_v, num_heads
        self.fc_q, self.fc_k, self.fc_v = nn.Linear(dim_q, dim_v), nn.Linear(dim_k, dim_v), nn.Linear(dim_k, dim_v)
        if ln:
            self.ln0, self.ln1 = nn.LayerNorm(dim_v), nn.LayerNorm(dim_v)
        self.fc_o = nn.Linear(dim_v, dim_v)

    def forward(self, Q, K):
        Q, K, V = self.fc_q(Q), self.fc_k(K), self.fc_v(K)
        dim_split = self.dim_V // self.num_heads
        Q_ = torch.cat(Q.split(dim_split, 2), 0)
        K_ = torch.cat(K.split(dim_split, 2), 0)
        V_ = torch.cat(V.split(dim_split, 2), 0)
        A = torch.softmax(Q_.bmm(K_.transpose(1, 2)) / math.sqrt(self.dim_V), 2)
        O = torch.cat((Q_ + A.bmm(V_)).split(Q.size(0), 0), 2)  # noqa: E741
        O = O if getattr(self, "ln0", None) is None else self.ln0(O)  # noqa: E741
        O = O + F.relu(self.fc_o(O))  # noqa: E741
        return O if getattr(self, "ln1", None) is None else self.ln1(O)


class ISAB(nn.Module):
    def __init__(self, dim_in, dim_out, num_heads, num_inds, ln=False):
        super().__init__()
        self.I = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_inds, dim_out)))
        self.mab0 = MAB(dim_out, dim_in, dim_out, num_heads, ln)
        self.mab1 = MAB(dim_in, dim_out, dim_out, num_heads, ln)

    def forward(self, X):
        return self.mab1(X, self.mab0(self.I.repeat(X.size(0), 1, 1), X))


class PMA(nn.Module):
    def __init__(self, dim, num_heads, num_seeds, ln=False):
        super().__init__()
        self.S = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_seeds, dim)))
        self.mab = MAB(dim, dim, dim, num_heads, ln)

    def forward(self, X):
        return self.mab(self.S.repeat(X.size(0), 1, 1), X)


class SetTransformer(nn.Module):
    def __init__(self, dim_in=3, outputs=2, dim_out=5, inducing=6, width=48, heads=6):
        super().__init__()
        self.enc = nn.Sequential(
            ISAB(dim_in, width, heads, inducing, ln=True), ISAB(width, width, heads, inducing, ln=True)
        )
        self.dec = nn.Sequential(PMA(width, heads, outputs, ln=True), nn.Linear(width, dim_out))

    def forward(self, X):
        return self.dec(self.enc(X))


EXPORT = {"dynamic_batch": False}  # the batch says how many parts there are


def make():
    """Return the model."""
    return SetTransformer()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 11, 3, generator=torch.Generator().manual_seed(1)),)
