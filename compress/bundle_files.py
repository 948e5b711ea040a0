"""The files of a bundle: where they are, and what is written to them and read back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.core.home import at_home
from compress.core.run_paths import misled
from spaces.checkpoint_file import read_safetensors

MANIFEST, WEIGHTS, MASKS = "bundle.json", "weights.safetensors", "masks.safetensors"
TRANSFORMS, PLAN = "transforms.json", "plan.json"  # a plan alone in bundles of 0.1.0


def find(path: Path, key: str) -> Path:
    """Return the directory of the bundle that `path` is or holds; InputError, naming `key`, where there is none."""
    path = at_home(path)
    for root in (path, path / "bundle"):
        if (root / MANIFEST).is_file():
            return root
    raise InputError(f"{key}: {none_at(path)}")


def none_at(path: Path) -> str:
    """Return that there is no bundle at `path`, and what there is."""
    what = misled(path)
    if what is None:
        what = f"holds no {MANIFEST}" if path.is_dir() else "is not a directory"
        what += "; a bundle or a run directory is needed"
    return f"{str(path)!r} {what}"


def read_json(file: Path, key: str) -> Any:
    """Return the content of a file; InputError, naming `key`, where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {str(file)!r} cannot be read as JSON ({error})") from error


def plain(name: str, value: Any) -> Tensor:
    """Return a tensor of a state dict as safetensors takes it; raises CompressError, naming it, for anything else.

    A copy, since safetensors refuses tensors that share memory, as tied weights do; dense, without pending conjugation.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        kind = f"tensor of {value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise CompressError(f"a bundle holds plain tensors; {name!r} of the model is a {kind}")
    return value.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def put_back(old: Path, target: Path) -> None:
    """Let `old` be `target` again where nothing took its place, else delete it."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def save_masks(masks: Mapping[str, Tensor], file: Path) -> None:
    """Write boolean masks with eight values in a byte; their shapes are the parameters'."""
    from safetensors.torch import save_file

    packed = {name: np.packbits(mask.cpu().numpy().astype(bool)) for name, mask in masks.items()}
    save_file({name: torch.from_numpy(bits) for name, bits in packed.items()}, file)


def load_masks(file: Path, module: nn.Module, key: str) -> dict[str, Tensor]:
    """Return the masks of `module` as boolean tensors; InputError, naming `key`, where they do not fit it."""
    packed = read_safetensors(file, key)
    parameters = dict(module.named_parameters())
    masks = {}
    for name, bits in packed.items():
        if name not in parameters or bits.dtype != torch.uint8 or len(bits) != math.ceil(parameters[name].numel() / 8):
            raise InputError(f"{key}: the mask {name!r} of {str(file)!r} fits no parameter of the model")
        flat = np.unpackbits(bits.numpy(), count=parameters[name].numel()).astype(bool)
        masks[name] = torch.from_numpy(flat).view(parameters[name].shape)
    return masks
