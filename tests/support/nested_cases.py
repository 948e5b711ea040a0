"""Small models as bundles, and the nested networks of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress.bundle import Bundle, open_model
from compress.sorted.config import SortConfig
from compress.sorted.training import Nested, nested
from compress.testing.spaces import enliven
from spaces.zoo import ModelConfig

SMALL = {"input_size": (3, 32, 32)}
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"source": "builtin", "name": "cifar_resnet20"},
    "mobilenetv2": {"name": "mobilenetv2_035", **SMALL, "kwargs": {"num_classes": 7}},
    "mobilenetv3": {"name": "mobilenetv3_small_050", **SMALL, "kwargs": {"num_classes": 7}},
    "vit": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7},
    },
    "deit": {
        "name": "deit_tiny_distilled_patch16_224",
        "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7},
    },
    "torch's own attention": {
        "source": "python", "name": "torchvision.models:VisionTransformer", "input_size": (3, 16, 16),
        "kwargs": {
            "image_size": 16, "patch_size": 4, "num_layers": 3, "num_heads": 4, "hidden_dim": 48, "mlp_dim": 96,
            "num_classes": 7,
        },
    },
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "kwargs": {
            "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
            "num_classes": 7, "drop_path_rate": 0.0,
        },
    },
    "convnext": {"name": "convnext_atto", **SMALL, "kwargs": {"num_classes": 7, "drop_path_rate": 0.0}},
}  # fmt: skip


def bundle_of(name: str) -> Bundle:
    """Return one of the models, with weights none of which is at its initial value."""
    bundle = open_model(ModelConfig.model_validate(MODELS[name]), seed=0).bundle
    torch.manual_seed(0)
    enliven(bundle.model.eval())
    for parameter in bundle.model.parameters():
        if not parameter.any():  # a head that starts at zero
            nn.init.normal_(parameter, std=0.2)
    return bundle


def nested_of(bundle: Bundle, **options: Any) -> Nested:
    """Return its nested networks."""
    return nested(bundle, SortConfig.model_validate({"members": 12, **options}), seed=0)
