"""A learned image codec with a scale and mean hyperprior (Ballé et al. 2018; Minnen et al. 2018), as CompressAI has it.

Strided convolutions with generalised divisive normalisation, whose parameters are kept positive, transposed ones with
its inverse, latents rounded in evaluation; a factorised density for the hyper latents, a Gaussian one for the latents.
"""

import torch
import torch.nn.functional as F
from torch import nn


class NonNegative(nn.Module):
    """A parameter p stands for max(p, bound)² - pedestal."""

    def __init__(self, minimum=0.0, offset=2**-18):
        super().__init__()
        self.register_buffer("pedestal", torch.tensor([offset**2]))
        self.register_buffer("bound", torch.tensor([(minimum + offset**2) ** 0.5]))

    def init(self, value):
        return torch.sqrt(torch.max(value + self.pedestal, self.pedestal))

    def forward(self, x):
        return torch.max(x, self.bound) ** 2 - self.pedestal


class GDN(nn.Module):
    """x / sqrt(beta + gamma x²), or times it."""

    def __init__(self, channels, inverse=False):
        super().__init__()
        self.inverse, self.beta_reparam, self.gamma_reparam = inverse, NonNegative(1e-6), NonNegative()
        self.beta = nn.Parameter(self.beta_reparam.init(torch.ones(channels)))
        self.gamma = nn.Parameter(
            self.gamma_reparam.init(0.1 * torch.eye(channels) + 0.01 * torch.rand(channels, channels))
        )

    def forward(self, x):
        _, c, _, _ = x.size()
        gamma = self.gamma_reparam(self.gamma).reshape(c, c, 1, 1)
        norm = F.conv2d(x**2, gamma, self.beta_reparam(self.beta))
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class FactorizedDensity(nn.Module):
    """A density of its own for each channel: a small network of positive matrices gives its cumulative function."""

    def __init__(self, channels, filters=(3, 3)):
        super().__init__()
        self.filters = (1, *filters, 1)
        for i in range(len(filters) + 1):
            shape = channels, self.filters[i + 1], self.filters[i]
            self.register_parameter(f"_matrix{i}", nn.Parameter(torch.randn(shape) * 0.3))
            self.register_parameter(f"_bias{i}", nn.Parameter(torch.rand(channels, shape[1], 1) - 0.5))
            if i < len(filters):
                self.register_parameter(f"_factor{i}", nn.Parameter(torch.randn(channels, shape[1], 1) * 0.1))
        self.quantiles = nn.Parameter(torch.tensor([-10.0, 0.0, 10.0]).repeat(channels, 1, 1))

    def cumulative(self, x):
        for i in range(len(self.filters) - 1):
            x = torch.matmul(F.softplus(getattr(self, f"_matrix{i}")), x) + getattr(self, f"_bias{i}")
            if i < len(self.filters) - 2:
                x = x + torch.tanh(getattr(self, f"_factor{i}")) * torch.tanh(x)
        return x

    def forward(self, x):
        values = x.permute(1, 0, 2, 3)
        shape = values.size()
        values = values.reshape(values.size(0), 1, -1)
        medians = self.quantiles[:, :, 1:2]
        values = torch.round(values - medians) + medians
        likelihood = torch.sigmoid(self.cumulative(values + 0.5)) - torch.sigmoid(self.cumulative(values - 0.5))
        back = [values.reshape(shape).permute(1, 0, 2, 3), likelihood.reshape(shape).permute(1, 0, 2, 3)]
        return back[0], back[1].clamp(min=1e-9)


class GaussianConditional(nn.Module):
    def forward(self, y, scales, means):
        quantised = torch.round(y - means) + means
        values, scales = torch.abs(quantised - means), scales.clamp(min=0.11)
        upper = 0.5 * torch.erfc(-(2**-0.5) * (0.5 - values) / scales)
        lower = 0.5 * torch.erfc(-(2**-0.5) * (-0.5 - values) / scales)
        return quantised, (upper - lower).clamp(min=1e-9)


def conv(inner, outer, kernel=5, stride=2):
    return nn.Conv2d(inner, outer, kernel, stride, kernel // 2)


def deconv(inner, outer, kernel=5, stride=2):
    return nn.ConvTranspose2d(inner, outer, kernel, stride, kernel // 2, stride - 1)


class MeanScaleHyperprior(nn.Module):
    def __init__(self, n=16, m=24):
        super().__init__()
        self.g_a = nn.Sequential(conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m))
        self.h_a = nn.Sequential(conv(m, n, 3, 1), nn.LeakyReLU(), conv(n, n), nn.LeakyReLU(), conv(n, n))
        self.h_s = nn.Sequential(
            deconv(n, m), nn.LeakyReLU(), deconv(m, m * 3 // 2), nn.LeakyReLU(), conv(m * 3 // 2, m * 2, 3, 1)
        )
        self.g_s = nn.Sequential(
            deconv(m, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, 3)
        )
        self.entropy_bottleneck, self.gaussian_conditional = FactorizedDensity(n), GaussianConditional()

    def forward(self, x):
        y = self.g_a(x)
        z_hat, z_likelihoods = self.entropy_bottleneck(self.h_a(y))
        scales, means = self.h_s(z_hat).chunk(2, 1)
        y_hat, y_likelihoods = self.gaussian_conditional(y, scales, means)
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}


EXPORT = {"exporter": "dynamo"}  # the other one lacks erfc


def make():
    """Return the model."""
    return MeanScaleHyperprior()


def inputs():
    """Return its inputs."""
    return (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)
