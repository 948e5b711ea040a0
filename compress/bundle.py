"""A model on disk, complete and free of pickles: base, removal plan, weights, masks, preprocessing, metrics."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import CompressError, InputError, NotWritten, reason_of
from compress.core.problems import validated
from compress.graph.apply import apply
from compress.graph.known import Known
from compress.graph.plan import Plan
from evaluators.datasets import Data, DataConfig, DataFacts, Preprocessing
from evaluators.tasks import DEFAULT, TaskConfig
from spaces.checkpoint import LoadReport, refuse_infinite
from spaces.checkpoint_file import read_safetensors
from spaces.shapes import Shape, check_forward, shown
from spaces.zoo import BuiltModel, ModelConfig, Source, Wishes, build_model, sources

_MANIFEST, _PLAN, _WEIGHTS, _MASKS = "bundle.json", "plan.json", "weights.safetensors", "masks.safetensors"


class _Manifest(Config):
    """The content of bundle.json."""

    schema_version: Literal[1] = Field(alias="schema")
    base: ModelConfig
    num_classes: int | None = Field(ge=1)
    preprocessing: dict[str, Any]
    parts: list[Literal["plan", "masks"]]
    metrics: dict[str, Any]
    provenance: list[dict[str, Any]]


@dataclass
class Bundle:
    """A model with all that is needed to rebuild it, feed it and go on working on it.

    `base` builds the dense architecture without weights; `plan` makes the small module of it; `masks` maps
    parameter names to boolean tensors, True where the weight is kept. `num_classes` is None for a model that gives
    something else than logits (N, classes). `known` is what has been found out about the model; it is not saved.
    """

    model: nn.Module
    base: ModelConfig
    num_classes: int | None
    preprocessing: Preprocessing
    plan: Plan | None = None
    masks: dict[str, Tensor] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    known: Known = field(default_factory=Known, repr=False)

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Return normal noise (batch, *input_size), float32, always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.preprocessing.input_size, generator=generator)

    def costs(self) -> dict[str, int]:
        """Return params, nonzero_params, macs and nonzero_macs; one image, counted once while the structure lasts."""
        return self.known.costs(self.model, self.example_inputs(), self.masks)

    def save(self, directory: str | Path) -> None:
        """Write the bundle to `directory`, replacing one that is there only once the new one is complete.

        Raises InputError when the directory cannot be written.
        """
        from safetensors import SafetensorError

        target = Path(directory)
        partial, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("partial", "old"))
        try:
            shutil.rmtree(partial, ignore_errors=True)
            _put_back(old, target)  # where a process was killed between the two renames below
            partial.mkdir(parents=True)
            self._write(partial)
            if target.exists():
                target.rename(old)
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            raise NotWritten(f"cannot write the bundle {str(target)!r}: {reason_of(error)}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _put_back(old, target)

    def _write(self, directory: Path) -> None:
        from safetensors.torch import save_file

        parts = [name for name, part in (("plan", self.plan), ("masks", self.masks)) if part is not None]
        manifest = {
            "schema": 1,
            "base": self.base.model_dump(mode="json"),
            "num_classes": self.num_classes,
            "preprocessing": self.preprocessing.to_dict(),
            "parts": parts,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }
        save_file({name: _plain(name, value) for name, value in self.model.state_dict().items()}, directory / _WEIGHTS)
        if self.plan is not None:
            (directory / _PLAN).write_text(json.dumps(self.plan.to_dict()), encoding="utf-8")
        if self.masks is not None:
            _save_masks(self.masks, directory / _MASKS)
        (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, key: str = "bundle") -> Bundle:
        """Read a bundle, or the bundle of a run directory; the model comes back in eval mode, bit for bit.

        Raises InputError, naming `key`, when anything of it is absent, damaged or does not fit together.
        """
        root = _find(Path(directory), key)
        manifest, preprocessing = _read_manifest(root, key)
        classes = manifest.num_classes if manifest.base.from_source.classless else None
        module = build_model(manifest.base, classes).module
        plan = None
        if "plan" in manifest.parts:
            plan, module = _apply_plan(root, module, key)
        state = read_safetensors(root / _WEIGHTS, key)
        refuse_infinite(module, state, str(root / _WEIGHTS), key)
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{key}: the weights of {str(root)!r} do not fit its architecture: {reason}") from error
        return cls(
            model=module.eval(),
            base=manifest.base,
            num_classes=manifest.num_classes,
            preprocessing=preprocessing,
            plan=plan,
            masks=_load_masks(root / _MASKS, module, key) if "masks" in manifest.parts else None,
            metrics=manifest.metrics,
            provenance=manifest.provenance,
        )


def load(directory: str | Path) -> nn.Module:
    """Return the model of a bundle or run directory, in eval mode; see `Bundle.load`."""
    return Bundle.load(directory).model


@dataclass
class Opened:
    """A model ready to work on, its data (None for `name: none`), and what became of its checkpoint, if any."""

    bundle: Bundle
    data: Data | None
    load_report: LoadReport | None


def open_model(model: ModelConfig, data: DataConfig | None = None, seed: int = 0, task: TaskConfig = DEFAULT) -> Opened:
    """Build or load the model of a recipe and open its data, each fitted to the other.

    The model takes the data's number of classes; image size and channels are the recipe's, else the model's where it
    has its own, else the images'. Raises InputError for whatever does not fit.
    """
    facts = data.describe() if data is not None else DataFacts(None, None, None)
    # sources without sizes of their own take that of the images where the recipe says none
    own = not model.from_source.sized and model.input_size is None
    wishes = facts if own else DataFacts(None, getattr(data, "image_size", None), getattr(data, "channels", None))
    if model.input_size is not None:
        _takes_images(facts.num_classes, model.input_size)
    built = build_model(model, facts.num_classes, wishes.image_size, wishes.channels, seed)
    found = data.load(task, built.pretrained_cfg, seed=seed) if data is not None else None
    preprocessing = found.preprocessing if found else Preprocessing.of_model(built.pretrained_cfg, built.input_size)
    if preprocessing.input_size != built.input_size:
        check_forward(built.module, preprocessing.input_size, model.name, facts.num_classes)
    if isinstance(built, _Reopened):
        bundle = built.bundle
        bundle.preprocessing = preprocessing
    else:
        bundle = Bundle(built.module, built.config, built.num_classes, preprocessing)
    return Opened(bundle, found, built.load_report)


@dataclass
class _Reopened(BuiltModel):
    """A model out of a bundle, with what else the bundle holds."""

    bundle: Bundle


@sources.register("bundle")
class BundleSource(Source):
    """A bundle that a run has written, or a run directory with one."""

    images = False
    sized = weighted = checked = True

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the directory, and keys that a bundle leaves no room for."""
        if not any((Path(config.name) / part / _MANIFEST).is_file() for part in ("", "bundle")):
            yield "name", f"{config.name!r} holds no {_MANIFEST}; a bundle or a run directory is needed"
        for name in ("pretrained", "kwargs", "input_size"):
            if getattr(config, name):
                yield name, "a bundle brings its own architecture; leave it out"

    def build(self, config: ModelConfig, wishes: Wishes) -> BuiltModel:
        """Load the bundle; it is run where another size than its own is asked for."""
        bundle = Bundle.load(config.name, "model.name")
        own, classes = bundle.preprocessing.input_size, bundle.num_classes
        if wishes.num_classes not in (None, classes):
            has = "gives no logits" if classes is None else f"has {classes} classes"
            raise InputError(f"model.name: the bundle {config.name!r} {has}, the data has {wishes.num_classes} classes")
        _takes_images(wishes.num_classes, own)
        if wishes.sides is not None and len(own) != 3:
            raise InputError(f"data.image_size: the bundle takes {shown(own)}, no images; leave it out")
        shape = (wishes.in_chans or own[0], *(wishes.sides or own[1:]))
        if shape != own:
            check_forward(bundle.model, shape, config.name)
        cfg = bundle.preprocessing.to_dict() | {"input_size": shape, "fixed_input_size": True}
        return _Reopened(bundle.model, config, classes, shape, None, cfg, bundle)


def _plain(name: str, value: Any) -> Tensor:
    """Return a tensor of a state dict as safetensors takes it; raises CompressError, naming it, for anything else.

    A copy, since safetensors refuses tensors that share memory, as tied weights do; dense, without pending conjugation.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        kind = f"tensor of {value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise CompressError(f"a bundle holds plain tensors; {name!r} of the model is a {kind}")
    return value.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _put_back(old: Path, target: Path) -> None:
    """Let `old` be `target` again where nothing took its place, else delete it."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _takes_images(num_classes: int | None, shape: Shape) -> None:
    if num_classes is not None and len(shape) != 3:
        raise InputError(
            f"model.input_size: the data holds images (channels, height, width), the model takes {shown(shape)}; "
            "leave the images out with data.name: none"
        )


def _find(path: Path, key: str) -> Path:
    for root in (path, path / "bundle"):
        if (root / _MANIFEST).is_file():
            return root
    what = "holds no bundle.json" if path.is_dir() else "is not a directory"
    raise InputError(f"{key}: {str(path)!r} {what}; a bundle or a run directory is needed")


def _read_json(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {str(file)!r} cannot be read as JSON ({error})") from error


def _read_manifest(root: Path, key: str) -> tuple[_Manifest, Preprocessing]:
    content = _read_json(root / _MANIFEST, key)
    try:
        manifest = validated(_Manifest, content)
        return manifest, Preprocessing.from_dict(manifest.preprocessing)
    except InputError as error:
        raise InputError(f"{key}: {str(root / _MANIFEST)!r} is not a bundle's: {'; '.join(error.problems)}") from error


def _apply_plan(root: Path, module: nn.Module, key: str) -> tuple[Plan, nn.Module]:
    content = _read_json(root / _PLAN, key)
    try:
        plan = Plan.from_dict(content)
        return plan, apply(plan, module)
    except (InputError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{key}: the plan {str(root / _PLAN)!r} does not fit its base: {reason}") from error


def _save_masks(masks: Mapping[str, Tensor], file: Path) -> None:
    """Write boolean masks with eight values in a byte; their shapes are the parameters'."""
    from safetensors.torch import save_file

    packed = {name: np.packbits(mask.cpu().numpy().astype(bool)) for name, mask in masks.items()}
    save_file({name: torch.from_numpy(bits) for name, bits in packed.items()}, file)


def _load_masks(file: Path, module: nn.Module, key: str) -> dict[str, Tensor]:
    packed = read_safetensors(file, key)
    parameters = dict(module.named_parameters())
    masks = {}
    for name, bits in packed.items():
        if name not in parameters or bits.dtype != torch.uint8 or len(bits) != math.ceil(parameters[name].numel() / 8):
            raise InputError(f"{key}: the mask {name!r} of {str(file)!r} fits no parameter of the model")
        flat = np.unpackbits(bits.numpy(), count=parameters[name].numel()).astype(bool)
        masks[name] = torch.from_numpy(flat).view(parameters[name].shape)
    return masks
