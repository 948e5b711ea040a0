"""Models by name: what a recipe's section `model` says, and how a source builds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.core.inputs import Description, InputConfig, ModelInputs
from compress.core.registry import Registry
from compress.core.sections import NameOf, OrName, ReadAnew
from compress.core.tensors import mapped
from evaluators.tasks import DEFAULT, Task, TaskConfig
from spaces.checkpoint import LoadReport, load_checkpoint
from spaces.shapes import Shape, as_argument, check_forward, pair, peculiarities, sides_of, wished


class Source(ABC):
    """Where names of models are looked up; one file in `spaces/sources/` each."""

    images: ClassVar[bool] = True
    """Whether all of its models take channels, height and width."""
    published: ClassVar[bool] = False
    """Whether published weights can be downloaded."""
    sized: ClassVar[bool] = False
    """Whether models have an input size of their own; the others take that of the images."""
    weighted: ClassVar[bool] = False
    """Whether models come with their weights."""
    own_code: ClassVar[bool] = False
    """Whether code of the user's builds models, which may give them weights."""
    checked: ClassVar[bool] = False
    """Whether `build` itself runs the model on the size that is asked for."""
    headless: ClassVar[bool] = False
    """Whether the resolved config leaves the width of the head open, so that it is needed to build the model again."""

    def names(self) -> Sequence[str]:
        """Return the names that it knows; empty where there is no list."""
        return ()

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield (key below `model`, sentence) for what is wrong with the names of a model and of its arguments."""
        known = self.names()
        if config.name not in known:
            yield "name", unknown_name(config.source, config.name, known)

    def look(self, config: ModelConfig) -> None:  # noqa: B027
        """Look closer, without building anything, at a config without `problems`; raises InputError for what is wrong.

        What `build` raises as well and what takes a moment belongs here: a recipe is checked by it, once.
        """

    def task_of(self, config: ModelConfig) -> TaskConfig:
        """Return what the model is for, where nobody says; InputError, naming the recipe's key, where it is damaged."""
        return DEFAULT

    def misfit(self, config: ModelConfig, task: TaskConfig) -> str | None:
        """Return why a known model is none for `task`, where its name alone tells; None where it does not."""
        return None

    @abstractmethod
    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Return the module for `task`, without the user's checkpoint; sizes of 0 are left to the model.

        Where it cannot tell how wide the head is, its task says 0 outputs, and the model is run to find out.
        Raises InputError, naming the recipe's key.
        """


sources: Registry[type[Source]] = Registry("model source", home=("spaces.sources", "compress.bundle"), base=Source)


class ModelConfig(Config):
    """The network that a run starts from."""

    source: Annotated[str, NameOf(sources)] = Field(
        "timm",
        description="where the name is looked up; python: package.module:callable; space: a search space, with the "
        "kwargs preset, or arch (choices, published code or JSON file) and options; bundle: a directory",
    )
    name: str = Field(
        min_length=1, description="model name, package.module:callable, search space, or bundle or run directory"
    )
    pretrained: bool = Field(False, description="download the published weights (timm and torchvision)")
    checkpoint: str | None = Field(None, description="weights to load: .safetensors, or .pth read without unpickling")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments for the model's constructor")
    input_size: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = Field(
        None,
        description="channels, height, width (a python model without images takes any sizes after the batch); null: "
        "the model's own or the data's",
    )
    inputs: Description | None = Field(
        None,
        description="what the forward pass takes, where that is more, or other, than one tensor of normal noise: "
        "keyword arguments by name, such as {x: {shape: [3, 64, 64]}, step: {shape: [], dtype: int64, high: 1000}}, or "
        "a list of positional ones",
    )

    @model_validator(mode="after")
    def _images(self) -> Self:
        if self.inputs is not None and self.input_size is not None:
            raise ValueError("input_size: inputs say the sizes, too; leave it out")
        if self.described is not None and len(self.described.main.shape) != 3 and sources.get(self.source).images:
            raise ValueError(f"inputs: {self.source} models take channels, height, width; got {self.described}")
        if self.input_size is not None and len(self.input_size) != 3 and sources.get(self.source).images:
            raise ValueError(f"input_size: {self.source} models take channels, height, width; got {self.input_size}")
        return self

    @property
    def from_source(self) -> Source:
        """The source that builds it."""
        return sources.get(self.source)()

    @property
    def described(self) -> ModelInputs | None:
        """The inputs of the model, where the recipe says them."""
        return None if self.inputs is None else ModelInputs.of(self.inputs)

    @property
    def has_weights(self) -> bool:
        """Whether the model comes with weights, so that it need not be trained first."""
        return self.pretrained or self.checkpoint is not None or self.from_source.weighted

    def problems(self) -> list[tuple[str, str]]:
        """Return (key below `model`, sentence) for what can be told to be wrong before anything is built."""
        source = self.from_source
        found = list(source.problems(self))
        before, colon, rest = self.name.partition(":")
        if colon and before in sources and "name" in dict(found):
            text = f"got {self.name!r}; the source is a key of its own: source: {before}, name: {rest}"
            found = [("name", text), *(each for each in found if each[0] != "name")]
        elif hint := self._hint() if "name" in dict(found) else "":
            found = [(key, f"{text}; {hint}" if key == "name" else text) for key, text in found]
        if self.pretrained and not source.published and "pretrained" not in dict(found):
            found.append(("pretrained", f"{self.source} models have no published weights; give model.checkpoint"))
        return found

    def _hint(self) -> str:
        """Return where the name is known that this source does not know; empty where nowhere."""
        others = (name for name in sources if name != self.source and self.name in sources.get(name)().names())
        if self.source == "timm" and (":" in self.name or self.name.endswith(".py")):
            own = self.name if ":" in self.name else f"{Path(self.name).stem}:CALLABLE"
            return f"a model of your own is written python:{own}"
        return next((f"{other} has it: {other}:{self.name}" for other in others), "")


def named(name: str) -> dict[str, str]:
    """Return the keys that a name alone stands for: `SOURCE:NAME`, or `NAME` of one of timm's models.

    >>> named("builtin:cifar_resnet20")
    {'source': 'builtin', 'name': 'cifar_resnet20'}
    """
    source, colon, rest = name.partition(":")
    return {"source": source, "name": rest} if colon and source in sources else {"source": "timm", "name": name}


ModelSection = Annotated[ModelConfig, ReadAnew(), OrName(named, "NAME of timm's, or SOURCE:NAME")]
"""What recipes hold: a section, or a name alone, `SOURCE:NAME` or `NAME` of one of timm's."""


@dataclass
class BuiltModel:
    """A module with what is needed to rebuild it and to feed it.

    `task` is at the model's sizes; it has 0 outputs where the model gives others than the task's.
    `config` is resolved: building it again, with no other argument, gives the same architecture without weights.
    `pretrained_cfg` has `input_size` as built, `fixed_input_size` (true where no other image size works) and, for
    models with published preprocessing, timm's keys `mean`, `std`, `interpolation`, `crop_pct`. `note` is what users
    are to be told of the module.
    """

    module: nn.Module
    config: ModelConfig
    task: Task
    load_report: LoadReport | None
    pretrained_cfg: dict[str, Any]
    note: str = field(default="", kw_only=True)

    @property
    def input_size(self) -> Shape:
        """Sizes of one input, as built."""
        return self.task.input_size


def build_model(config: ModelConfig, task: Task | TaskConfig | None = None, seed: int = 0) -> BuiltModel:
    """Build the model of `config`, in eval mode, for `task`; None: for what its source has it for.

    Sizes that the task does not say (all of them, of a `TaskConfig`) are the recipe's or the model's own.
    Initial weights are drawn from `seed`; the global generator is left as it was.
    Raises InputError, naming the recipe's key, for an unknown name, an argument that the constructor refuses,
    a module that is none or that gives something else than the task asks for, or weights that do not fit.
    """
    wrong = config.problems()
    if wrong:
        raise InputError(*(f"model.{key}: {text}" for key, text in wrong))
    source = config.from_source
    if not isinstance(task, Task):
        task = (task or source.task_of(config)).of_model(None, ())
    if config.input_size is not None:
        channels, *sides = config.input_size
        agree("model.input_size", channels, wished(task.in_chans), "data.channels")
        agree("model.input_size", sides, as_argument(sides_of(task)), "pixels a side: data.image_size")
        task = task.resized(config.input_size)
    if config.described is not None:
        task = task.resized(config.described.main.shape or (1,))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = source.build(config, task)
    _to_single(built)
    if not source.checked and (sides_of(task) is not None or task.num_outputs or not built.task.num_outputs):
        asked = task.resized(built.input_size)
        try:
            found = check_forward(built.module.eval(), config.name, asked, built.config.described)
        except InputError as error:
            raise (InputError(f"{error}; {built.note}") if built.note else error) from error.__cause__
        built.task = task.config.of_model(found, built.input_size)
        built.note = "; ".join(
            filter(None, [built.note, *peculiarities(built.module, built.task, built.config.described)])
        )
    if config.checkpoint is not None:
        built.load_report = load_checkpoint(built.module, config.checkpoint)
    built.module.eval()
    return built


def _to_single(built: BuiltModel) -> None:
    """Turn a module whose parameters are all of another precision, and its described inputs, into float32.

    Half precision can neither be trained nor held against a file exactly, and runtimes have no convolutions of doubles.
    Where parameters are of several kinds the module casts by itself, and is left as it is.
    """
    kinds = {each.dtype for each in built.module.parameters() if each.is_floating_point()}
    if len(kinds) != 1 or torch.float32 in kinds:
        return
    kind = str(kinds.pop()).removeprefix("torch.")
    built.module.float()

    def single(one: InputConfig) -> InputConfig:
        return one.model_copy(update={"dtype": "float32"}) if one.dtype == kind else one

    inputs = mapped(built.config.inputs, single, InputConfig)
    built.config = built.config.model_copy(update={"inputs": inputs})
    half = "" if kind == "float64" else "; compress quantize writes files of float16"
    built.note = f"the weights of {built.config.name} are {kind}, it is worked on in float32{half}"


def agree(key: str, given: Any, wish: Any, what: str) -> None:
    """Raise InputError where the recipe's `key` says something else (`given`) than the data needs (`wish`)."""
    sizes = [pair(each) if isinstance(each, int | list | tuple) else each for each in (given, wish)]
    if wish is not None and sizes[0] != sizes[1]:
        raise InputError(f"{key}: got {given!r}; the data needs {wish!r} ({what})")


def unknown_name(source: str, name: str, known: Sequence[str], nearest_to: str | None = None) -> str:
    """Return the sentence for a name that a source does not know."""
    allowed = ", ".join(known) if len(known) < 20 else f"{len(known)} names, see `compress ls models`"
    return f"{source} has no model {name!r}; allowed: {allowed}{did_you_mean(nearest_to or name, known)}"
