"""A model on disk, complete and free of pickles: base, transforms, weights, masks, preprocessing, metrics."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from compress.bundle_files import (
    MANIFEST,
    MASKS,
    TRANSFORMS,
    WEIGHTS,
    find,
    load_masks,
    none_at,
    plain,
    put_back,
    read_json,
    save_masks,
)
from compress.core.config import Config
from compress.core.errors import InputError, NotWritten, reason_of
from compress.core.inputs import ModelInputs
from compress.core.modes import as_imported
from compress.core.problems import validated
from compress.core.tensors import Inputs, restore
from compress.graph.known import Known
from compress.transforms import Transform, history
from evaluators.datasets import Data, DataConfig, DataFacts, Preprocessing
from evaluators.tasks import DEFAULT, Task, TaskConfig, TaskSection, tasks
from evaluators.tasks.opened import facts_of
from evaluators.tasks.opened import opened as opened_data
from spaces.checkpoint import LoadReport, refuse_infinite
from spaces.checkpoint_file import read_safetensors, some
from spaces.shapes import Shape, check_forward, shown, sides_of
from spaces.zoo import BuiltModel, ModelConfig, Source, build_model, sources


class _Manifest(Config):
    """The content of bundle.json."""

    schema_version: Literal[1] = Field(alias="schema")
    base: ModelConfig
    task: TaskSection = DEFAULT  # bundles of 0.1.0 name none
    num_outputs: int | None = Field(ge=1, validation_alias=AliasChoices("num_outputs", "num_classes"))  # so in 0.1.0
    preprocessing: dict[str, Any]
    parts: list[Literal["transforms", "plan", "masks"]]  # a plan in bundles of 0.1.0
    metrics: dict[str, Any]
    provenance: list[dict[str, Any]]
    class_names: list[str] = Field(default_factory=list)  # bundles of 0.1.0 have none


@dataclass
class Bundle:
    """A model with all that is needed to rebuild it, feed it and go on working on it.

    `base` builds the dense architecture without weights; `transforms`, in order, make the module of it; `masks` maps
    parameter names to boolean tensors, True where the weight is kept. `task` has 0 outputs for a model that gives
    something else than models of its task. `class_names` are those of the data that it was fitted to last, in the order
    of the outputs; empty where there was none. `known` is what has been found out about the model; it is not saved.
    """

    model: nn.Module
    base: ModelConfig
    task: Task
    preprocessing: Preprocessing
    transforms: tuple[Transform, ...] = ()
    masks: dict[str, Tensor] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    known: Known = field(default_factory=Known, repr=False)

    def example_inputs(self, batch: int = 1) -> Inputs:
        """Return what the model is called with, always the same: such as the recipe says in `model.inputs`.

        Else normal noise (batch, *input_size), float32, as the task hands it on: detectors take a list of images.
        """
        return _example(self.base, self.task, self.preprocessing, batch)

    @property
    def inputs(self) -> ModelInputs | None:
        """What the model takes, where its recipe says it."""
        return self.base.described

    @property
    def takes(self) -> str:
        """Names, types and sizes of what the model takes for one sample, in words."""
        several = self.inputs is not None and len(self.inputs.named()) > 1
        return f"input{'s' if several else ''} {self.inputs or shown(self.preprocessing.input_size)}"

    def costs(self) -> dict[str, int]:
        """Return params, nonzero_params, macs and nonzero_macs; one image, counted once while the structure lasts."""
        return self.known.costs(self.model, self.example_inputs(), self.masks)

    def transformed(self, transform: Transform, model: nn.Module) -> Bundle:
        """Return the bundle after `transform`, which made `model` of this one's."""
        return replace(self, model=model.eval(), transforms=history.followed(self.transforms, transform))

    def save(self, directory: str | Path) -> None:
        """Write the bundle to `directory`, replacing one that is there only once the new one is complete.

        Raises InputError when the directory cannot be written.
        """
        from safetensors import SafetensorError

        target = Path(directory)
        partial, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("partial", "old"))
        try:
            shutil.rmtree(partial, ignore_errors=True)
            put_back(old, target)  # where a process was killed between the two renames below
            partial.mkdir(parents=True)
            self._write(partial)
            if target.exists():
                target.rename(old)
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            raise NotWritten(f"cannot write the bundle {str(target)!r}: {reason_of(error)}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            put_back(old, target)

    def _write(self, directory: Path) -> None:
        from safetensors.torch import save_file

        parts = ["transforms"] * bool(self.transforms) + ["masks"] * (self.masks is not None)
        manifest = {
            "schema": 1,
            "base": self.base.model_dump(mode="json"),
            "task": self.task.config.model_dump(mode="json"),
            "num_outputs": self.task.num_outputs or None,
            "preprocessing": self.preprocessing.to_dict(),
            "parts": parts,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "class_names": self.class_names,
        }
        save_file({name: plain(name, value) for name, value in self.model.state_dict().items()}, directory / WEIGHTS)
        if self.transforms:
            (directory / TRANSFORMS).write_text(history.to_json(self.transforms), encoding="utf-8")
        if self.masks is not None:
            save_masks(self.masks, directory / MASKS)
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path, key: str = "bundle") -> Bundle:
        """Read a bundle, or the bundle of a run directory; the model comes back in eval mode, bit for bit.

        Raises InputError, naming `key`, when anything of it is absent, damaged or does not fit together.
        """
        root = find(Path(directory), key)
        manifest, preprocessing = _read_manifest(root, key)
        task = manifest.task.of_model(manifest.num_outputs, preprocessing.input_size)
        wide = manifest.num_outputs if manifest.base.from_source.headless else None
        module = build_model(manifest.base, manifest.task.of_model(wide, ())).module
        transforms = history.read(root, manifest.parts, key)
        example = _example(manifest.base, task, preprocessing, 1)
        module = history.redo(transforms, module, example, f"{key}: in {str(root)!r}")
        state = read_safetensors(root / WEIGHTS, key)
        refuse_infinite(module, state, str(root / WEIGHTS), key)
        try:
            restore(module, state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{key}: the weights of {str(root)!r} do not fit its architecture: {reason}") from error
        return cls(
            model=module.eval(),
            base=manifest.base,
            task=task,
            preprocessing=preprocessing,
            transforms=transforms,
            masks=load_masks(root / MASKS, module, key) if "masks" in manifest.parts else None,
            metrics=manifest.metrics,
            provenance=manifest.provenance,
            class_names=manifest.class_names,
        )


def load(directory: str | Path) -> nn.Module:
    """Return the model of a bundle or run directory, in eval mode; see `Bundle.load`."""
    if not isinstance(directory, str | os.PathLike):
        raise InputError(f"bundle: got {directory!r:.80}; allowed: the path of a bundle or a run directory")
    with as_imported(torch.float32):
        return Bundle.load(directory).model


def task_in(directory: Path, key: str = "bundle") -> TaskConfig:
    """Return the task of a bundle, which is not opened; InputError, naming `key`, where it cannot be told."""
    return _read_manifest(find(directory, key), key)[0].task


def class_names_in(directory: Path, key: str = "bundle") -> list[str]:
    """Return the names of the classes of a bundle, which is not opened, in the order of its outputs."""
    return _read_manifest(find(directory, key), key)[0].class_names


@dataclass
class Opened:
    """A model ready to work on, its data (None for `name: none`), and what became of its checkpoint, if any.

    `note` is what else there is to be told of the model.
    """

    bundle: Bundle
    data: Data | None
    load_report: LoadReport | None
    note: str = ""

    @property
    def told(self) -> list[str]:
        """What users are to know of the model, in sentences."""
        report = [] if self.load_report is None else [self.load_report.summary()]
        return [*report, *([self.note] if self.note else [])]


def open_model(
    model: ModelConfig, data: DataConfig | None = None, seed: int = 0, task: TaskConfig | None = None
) -> Opened:
    """Build or load the model of a recipe and open its data, each fitted to the other.

    The model gives what `task` (None: what its source has it for) needs of a model for the data; image size and
    channels are the recipe's, else the model's where it has its own, else the images'. Raises InputError for whatever
    does not fit.
    """
    task = task or model.from_source.task_of(model)
    misfit = data.misfit(task) if data is not None else None
    if misfit:
        raise InputError(f"data.name: {misfit}")
    facts = facts_of(data) if data is not None else DataFacts(None, None, None)
    # sources without sizes of their own take that of the images where the recipe says none
    own = not model.from_source.sized and model.input_size is None
    wishes = facts if own else DataFacts(None, getattr(data, "image_size", None), getattr(data, "channels", None))
    if model.input_size is not None:
        _takes_images(facts, model.input_size)
    side = wishes.image_size or 0
    built = build_model(model, task.bind(facts.num_outputs or 0, (wishes.channels or 0, side, side)), seed)
    _takes_images(facts, built.input_size)
    found = opened_data(data, task, built.pretrained_cfg, seed=seed) if data is not None else None
    bundle_inputs = built.bundle.inputs if isinstance(built, _Reopened) else built.config.described
    if found is not None and bundle_inputs is not None:
        _takes_batches(bundle_inputs, found)
    preprocessing = found.preprocessing if found else Preprocessing.of_model(built.pretrained_cfg, built.input_size)
    if preprocessing.input_size != built.input_size and built.config.inputs is None:
        check_forward(built.module, model.name, built.task.resized(preprocessing.input_size))
    fitted = built.task.resized(preprocessing.input_size)
    names = list(found.class_names) if found is not None else []
    notes = [built.note, *_on_the_order_of(names)]
    if isinstance(built, _Reopened):
        before = built.bundle.class_names
        notes += refuse_another_order(before, names)
        bundle = replace(built.bundle, task=fitted, preprocessing=preprocessing, class_names=names or before)
    else:
        bundle = Bundle(built.module, built.config, fitted, preprocessing, class_names=names)
    return Opened(bundle, found, built.load_report, "; ".join(filter(None, notes)))


def refuse_another_order(before: list[str], names: list[str]) -> list[str]:
    """Return what is to be told of data whose classes are called otherwise than those that a model was fitted to.

    Raises InputError where they are the same classes, numbered otherwise: every figure would be wrong.
    """
    if not before or not names or before == names:
        return []
    place = next((place for place, pair in enumerate(zip(before, names, strict=False)) if pair[0] != pair[1]), 0)
    if sorted(before) == sorted(names):
        raise InputError(
            f"data: its classes are numbered otherwise than those of the bundle: class {place} is {names[place]!r} in "
            f"the data and {before[place]!r} in the bundle; rename the classes so that their order is the bundle's"
        )
    return [f"the classes of the data are not called as those of the bundle: {some(names)} for {some(before)}"]


def _on_the_order_of(names: list[str]) -> list[str]:
    """Return what is to be told of classes whose names are numbers and that have others."""
    numbers = [int(name) for name in names if name.isdecimal()]
    if len(numbers) < len(names) or numbers == sorted(numbers):
        return []
    return [f"classes are numbered in the order of their names as texts: {some(names)}"]


@dataclass
class _Reopened(BuiltModel):
    """A model out of a bundle, with what else the bundle holds."""

    bundle: Bundle


def saved(directory: Path) -> ModelConfig:
    """Return the section `model` of the bundle in `directory`, or of the run there."""
    return ModelConfig(source="bundle", name=str(directory))


@sources.register("bundle")
class BundleSource(Source):
    """A bundle that a run has written, or a run directory with one."""

    images = False
    sized = weighted = checked = True

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the directory, and keys that a bundle leaves no room for."""
        if not any((Path(config.name) / part / MANIFEST).is_file() for part in ("", "bundle")):
            yield "name", none_at(Path(config.name))
        for name in ("pretrained", "kwargs", "input_size", "inputs"):
            if getattr(config, name):
                yield name, "a bundle brings its own architecture; leave it out"

    def task_of(self, config: ModelConfig) -> TaskConfig:
        """Return the bundle's task."""
        return task_in(Path(config.name), "model.name")

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Load the bundle; it is run where another size than its own, or another task, is asked for."""
        bundle = Bundle.load(config.name, "model.name")
        own, sides, found = bundle.preprocessing.input_size, sides_of(task), bundle.task.num_outputs
        if sides is not None and len(own) != 3:
            raise InputError(f"data.image_size: the bundle takes {shown(own)}, no images; leave it out")
        asked = task.config.of_model(None, (task.in_chans or own[0], *(sides or own[1:])))
        if bundle.inputs is not None and asked.input_size != own:
            raise InputError(f"data.image_size: the bundle takes {bundle.inputs}; leave it out")
        if asked.input_size != own or asked.config != bundle.task.config:
            found = check_forward(bundle.model, config.name, asked, bundle.inputs) or 0
        if task.num_outputs not in (0, found):
            has = f"has {found} {task.counted}" if found else f"does not give {task.form}"
            other = f"; it is for task {bundle.task.name}" if task.name != bundle.task.name else ""
            wide = f"the data has {task.num_outputs} {task.counted}"
            raise InputError(f"model.name: the bundle {config.name!r} {has}, {wide}{other}")
        fitted = task.config.of_model(found, asked.input_size)
        cfg = bundle.preprocessing.to_dict() | {"input_size": fitted.input_size, "fixed_input_size": True}
        return _Reopened(bundle.model, config, fitted, None, cfg, bundle)


def _takes_images(facts: DataFacts, shape: Shape) -> None:
    if facts.images and facts.num_outputs is not None and len(shape) != 3:
        raise InputError(
            f"model.input_size: the data holds images (channels, height, width), the model takes {shown(shape)}; "
            "leave the images out with data.name: none"
        )


def _takes_batches(inputs: ModelInputs, data: Data) -> None:
    """Raise InputError where the data gives other inputs than the recipe says that the model takes."""
    loader = data.test or data.train
    if loader is None:
        return
    wrong = inputs.misfit(next(iter(loader.batches())).inputs)
    if wrong is not None:
        raise InputError(f"model.inputs: the inputs {wrong}")


def _read_manifest(root: Path, key: str) -> tuple[_Manifest, Preprocessing]:
    content = read_json(root / MANIFEST, key)
    named = content.get("task") if isinstance(content, Mapping) else None
    task = named.get("name") if isinstance(named, Mapping) else None
    if isinstance(task, str) and task not in tasks:
        raise InputError(
            f"{key}: {str(root)!r} is for task {task!r}, which is not known here; allowed: {', '.join(tasks)}; "
            "install the package that brings it"
        )
    try:
        manifest = validated(_Manifest, content)
        return manifest, Preprocessing.from_dict(manifest.preprocessing)
    except InputError as error:
        raise InputError(f"{key}: {str(root / MANIFEST)!r} is not a bundle's: {'; '.join(error.problems)}") from error


def _example(base: ModelConfig, task: Task, preprocessing: Preprocessing, batch: int) -> Inputs:
    """Return what a model is called with for `batch` samples."""
    if base.described is not None:
        return base.described.draw(batch)
    generator = torch.Generator().manual_seed(0)
    return task.arguments(torch.randn(batch, *preprocessing.input_size, generator=generator))
