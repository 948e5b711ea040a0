"""The networks of vs_peers.py: CIFAR-10 architectures, and how files of published weights fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.bundle import Opened, open_model
from evaluators.datasets.npz import NpzConfig
from spaces.zoo import ModelConfig

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A network: its section `model`, the file of its weights, what images are normalised with, and new key names."""

    model: Mapping[str, Any]
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    renamed: Callable[[State], State] = dict

    def opened(self, images: Path, weights: Path, seed: int, limit_test: int | None) -> Opened:
        """Return the network with its weights, found below the folder `weights`, and the images of an npz file."""
        files = sorted(weights.rglob(self.weights))
        if not files:
            raise SystemExit(f"{weights} has no {self.weights}")
        data = NpzConfig(
            name="npz",
            path=str(images),
            batch_size=128,
            augment="crop_flip",
            mean=list(self.mean),
            std=list(self.std),
            limit_test=limit_test,
        )
        found = open_model(ModelConfig(**self.model), data, seed)
        missing, unexpected = found.bundle.model.load_state_dict(self.renamed(load_file(files[0])), strict=False)
        assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
        return found


class Residual(nn.Module):
    """A layer beside an identity."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return self.fn(x) + x


def convmixer(num_classes: int = 10) -> nn.Module:
    """ConvMixer-256/8 with kernels of 9 and patches of 4 pixels."""
    width = 256

    def block() -> nn.Module:
        depthwise = nn.Conv2d(width, width, 9, groups=width, padding="same")
        mixing = Residual(nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(width)))
        return nn.Sequential(mixing, nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    stem = [nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(*stem, *(block() for _ in range(8)), *head)


class KerasBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; with a stride they pad right and below, as Keras does."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=0 if stride > 1 else 1)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-3)
        self.shortcut = nn.Conv2d(before, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, before, H, W) to (N, width, H / stride, W / stride)."""
        inside = F.pad(x, (0, 1, 0, 1)) if self.stride > 1 else x
        inside = self.bn2(self.conv2(self.bn1(self.conv1(inside)).relu()))
        return (inside + self.shortcut(x)).relu()


def resnet8(num_classes: int = 10) -> nn.Module:
    """MLPerf Tiny's ResNet-8."""
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU()]
    blocks = [KerasBlock(16, 16, 1), KerasBlock(16, 32, 2), KerasBlock(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def resnet8_names(state: State) -> State:
    """Return Keras' weights under the names of `resnet8`."""
    layers = {"0": "conv2d", "8": "dense"}
    numbers = iter(range(1, 9))
    norms = {"1": "batch_normalization"}
    for place, block in enumerate(("3", "4", "5")):
        layers |= {f"{block}.conv{n}": f"conv2d_{next(numbers)}" for n in (1, 2)}
        if place:
            layers[f"{block}.shortcut"] = f"conv2d_{next(numbers)}"
        norms |= {f"{block}.bn{n}": f"batch_normalization_{2 * place + n}" for n in (1, 2)}
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    found = {f"{name}.weight": state[f"{old}.kernel"] for name, old in layers.items()}
    found |= {f"{name}.bias": state[f"{old}.bias"] for name, old in layers.items()}
    return found | {f"{n}.{part}": state[f"{old}.{key}"] for n, old in norms.items() for part, key in parts.items()}


def vit(num_classes: int = 10) -> nn.Module:
    """A small vision transformer: 4 blocks of width 128 with 4 heads, patches of 4 pixels."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, mlp_ratio=2, **sizes)


def vit_names(state: State) -> State:
    """Return the published weights under timm's names; queries, keys and values become one matrix."""
    parts = [
        ("embedding.patch_embeddings.conv", "patch_embed.proj"),
        ("embedding.cls_token", "cls_token"),
        ("embedding.pos_embeddings", "pos_embed"),
        ("encoder.layers", "blocks"),
        ("mlp_head", "head"),
        (".ffn.", ".mlp."),
        ("out_proj", "proj"),
        (".alpha", ".weight"),
        (".beta", ".bias"),
    ]
    found: State = {}
    for name, value in state.items():
        for old, new in parts:
            name = name.replace(old, new)
        found[name] = value
    for block in range(4):
        for kind in ("weight", "bias"):
            three = [found.pop(f"blocks.{block}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(three)
    return found


def without_prefix(state: State) -> State:
    """Return the weights without the prefix of a parallel module."""
    return {name.removeprefix("module."): value for name, value in state.items()}


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465)


def _resnet(depth: int) -> Network:
    model = {"source": "builtin", "name": f"cifar_resnet{depth}"}
    return Network(model, f"resnet{depth}.safetensors", *IMAGENET, without_prefix)


def _ours(name: str, weights: str, std: tuple[float, ...], mean: tuple[float, ...], names: Any) -> Network:
    return Network({"source": "python", "name": f"vs_peers_networks:{name}"}, weights, mean, std, names)


NETWORKS = {
    "resnet56": _resnet(56),
    "resnet20": _resnet(20),
    "convmixer": _ours(
        "convmixer", "convmixer_256_8_k9_p4.safetensors", (0.2023, 0.1994, 0.2010), CIFAR, without_prefix
    ),
    "vit": _ours("vit", "vit_d128_l4_h4_p4.safetensors", (0.2470, 0.2435, 0.2616), CIFAR, vit_names),
    "resnet8": _ours("resnet8", "resnet8_mlperf_tiny.safetensors", (1 / 255,) * 3, (0.0,) * 3, resnet8_names),
}
