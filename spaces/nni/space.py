"""A model space of NNI 3 behind the interface of `Space`.

NNI stays what it is: its labels are the decisions, its class builds the networks. Label values mean what NNI's
documentation of that space says.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError, is_out_of_memory
from compress.core.meta import without_storage
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.nni.labels import labels_of, read_labels
from spaces.nni.load import find_model_space, quiet, tuples
from spaces.space import Fill, Space, task_of

if TYPE_CHECKING:
    from optuna import Trial

    from spaces.supernet import Supernet

MOST_DRAWS = 10_000
MOST_COUNTED = 100_000
# What the constructors of NNI's hub call the parts of a task.
ARGUMENTS = {
    "num_classes": ("num_labels", "num_classes"),
    "in_chans": ("in_channels", "in_chans"),
    "img_size": ("img_size", "image_size"),
}


class NNIConfig(Config):
    """A model space of NNI and how to make it."""

    model_space: str = Field(description="where the class is: package.module.Class")
    kwargs: dict[str, Any] = Field({}, description="arguments of its constructor; lists are given as tuples")
    img_size: int | None = Field(
        None, ge=1, description="image side in pixels; null: 32 where the space has at most 100 classes, else 224"
    )


class NNISpace(Space):
    """Any `nni.nas.nn.pytorch.ModelSpace`, as `nni:package.module.Class`.

    Where its labels are bound by constraints, samples are drawn until one meets them, and a trial of Optuna that does
    not is pruned.
    """

    Config = NNIConfig

    def __init__(self, config: NNIConfig) -> None:
        self.name = f"nni:{config.model_space}"
        self._type = find_model_space(config.model_space)
        self._kwargs = {key: tuples(value) for key, value in config.kwargs.items()}
        self._space = self._made()
        self._labels = read_labels(self._space, self.name)
        self._constrained = len(self._space.simplify()) > len(labels_of(self._space))
        super().__init__(config)
        self.default_task = self._own_task(config.img_size)

    def _decisions(self) -> Sequence[Decision]:
        return [label.decision for label in self._labels.values()]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return NNINetwork(self._frozen(arch, self._arguments(task)))

    def _supernet(self, task: Task) -> Supernet:
        raise InputError(
            f"space {self.name} has no supernet here; NNI trains its model spaces with shared weights itself "
            "(nni.nas.strategy.RandomOneShot, DARTS, ...)"
        )

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a sample of NNI (label -> value); what does not matter is left out, as NNI does."""
        if not isinstance(code, Mapping):
            raise InputError(f"an architecture of space {self.name} is a mapping of labels to values; got {code!r}")
        known = {name: label.choice(code[name]) for name, label in self._labels.items() if name in code}
        return self.check(known, drop_untaken=True)

    def to_code(self, arch: Architecture) -> dict[str, Any]:
        """Return `arch` as a sample of NNI; labels that do not matter have their first value."""
        return {
            name: label.value(arch[name]) if name in arch else label.values[0] for name, label in self._labels.items()
        }

    # Constraints between labels.

    @property
    def conditional(self) -> bool:
        """Whether choices of all decisions together can be something else than an architecture."""
        return self._constrained or super().conditional

    def check(self, choices: Mapping[str, Any], drop_untaken: bool = False) -> Architecture:
        """Return `choices` as a legal architecture, see `Space.check`; NNI's constraints hold for it too."""
        arch = super().check(choices, drop_untaken)
        problem = self._violation(arch)
        if problem is not None:
            raise InputError(f"space {self.name}: {problem}")
        return arch

    def count(self) -> int:
        """Return the exact number of legal architectures; InputError for a large space with constraints."""
        if not self._constrained:
            return super().count()
        if super().count() > MOST_COUNTED:
            raise InputError(f"space {self.name} has constraints between labels and is too large to count one by one")
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Architecture]:
        return (arch for arch in super().__iter__() if self._violation(arch) is None)

    def sample(self, generator: random.Random) -> Architecture:
        """Draw one of all legal architectures, each with the same probability."""
        for _ in range(MOST_DRAWS):
            arch = super().sample(generator)
            if self._violation(arch) is None:
                return arch
        raise InputError(f"space {self.name}: none of {MOST_DRAWS} draws meets its constraints")

    def mutate(self, arch: Architecture, generator: random.Random) -> Architecture:
        """Return a legal architecture with one decision of `arch` changed; `arch` where none was found."""
        for _ in range(MOST_DRAWS):
            changed = super().mutate(arch, generator)
            if self._violation(changed) is None:
                return changed
        return arch

    def neighbours(self, arch: Architecture, generator: random.Random | None = None) -> Iterator[Architecture]:
        """Yield every legal architecture with one decision changed."""
        return (each for each in super().neighbours(arch, generator) if self._violation(each) is None)

    def complete(self, choices: Mapping[str, Any], fill: Fill) -> Architecture:
        """Return what `choices` stand for; where that breaks a constraint, the first of its mutations that does not.

        Mutations go on from each other, so that what is found is near, and always the same.
        """
        arch = super().complete(choices, fill)
        generator = random.Random(arch.to_json())
        for _ in range(MOST_DRAWS):
            if self._violation(arch) is None:
                return arch
            arch = super().mutate(arch, generator)
        raise InputError(f"space {self.name}: none of {MOST_DRAWS} steps meets its constraints")

    def suggest(self, trial: Trial) -> Architecture:
        """Let an Optuna trial take the decisions; where they violate a constraint the trial is pruned."""
        from optuna import TrialPruned

        arch = super().suggest(trial)
        problem = self._violation(arch)
        if problem is not None:
            raise TrialPruned(problem)
        return arch

    def _violation(self, arch: Architecture) -> str | None:
        """Return the constraint that `arch` does not meet, in NNI's words."""
        if not self._constrained:
            return None
        error = self._space.check_contains(self.to_code(arch))
        return None if error is None else str(error)

    # Building.

    def _made(self) -> Any:
        """Return the model space without storage: it is only asked for its labels."""
        try:
            with without_storage():
                return self._construct({})
        except Exception as error:  # constructors raise anything
            if is_out_of_memory(error):
                raise
            raise InputError(f"space {self.name} cannot be made with {self._kwargs}: {error}") from error

    def _frozen(self, arch: Architecture, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the network of `arch` anew, as NNI's own presets are built; `freeze` would share weights."""
        from nni.nas.space import model_context

        with model_context(self.to_code(arch)):
            return self._construct(arguments)

    def _construct(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Call the constructor on torch's default device, else move there: some read numbers off new tensors."""
        device, keywords = torch.get_default_device(), {**self._kwargs, **arguments}
        with quiet():
            try:
                network: nn.Module = self._type(**keywords)
            except RuntimeError:
                if device.type != "meta":
                    raise
                with torch.device("cpu"):
                    network = self._type(**keywords).to(device)
        return network

    def _own_task(self, img_size: int | None) -> Task:
        """Return what the space's networks are for, read off one of them."""
        with without_storage():
            network = self._frozen(self.sample(random.Random(0)), {})
        heads = [module.out_features for module in network.modules() if isinstance(module, nn.Linear)]
        stems = [module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
        if not heads or not stems:
            raise InputError(f"space {self.name} builds no image classifiers: no convolution or no linear layer")
        given = self._parameter("img_size")
        side = img_size or (None if given is None else self._default(given))
        return task_of(heads[-1], stems[0], side or (32 if heads[-1] <= 100 else 224))

    def _arguments(self, task: Task) -> dict[str, Any]:
        """Return the constructor's arguments for `task`; InputError for what it cannot be told."""
        arguments, problems = {}, []
        for part, wanted, own in (
            ("num_classes", task.num_outputs, self.default_task.num_outputs),
            ("in_chans", task.in_chans, self.default_task.in_chans),
            ("img_size", task.img_size, task.img_size),
        ):
            name = self._parameter(part)
            if name is not None:
                arguments[name] = wanted
            elif wanted != own:
                problems.append(f"space {self.name} builds networks with {part} {own} only; got {wanted}")
        if problems:
            raise InputError(*problems)
        return arguments

    def _parameter(self, part: str) -> str | None:
        return next((name for name in ARGUMENTS[part] if name in self._signature), None)

    def _default(self, name: str) -> Any:
        return self._kwargs.get(name, self._signature[name].default)

    @property
    def _signature(self) -> Mapping[str, inspect.Parameter]:
        # NNI wraps constructors of model spaces and keeps the original one here.
        return inspect.signature(getattr(self._type, "_init_wrapped", self._type.__init__)).parameters


class NNINetwork(nn.Module):
    """A frozen network of NNI: images (N, C, H, W) to logits (N, classes), auxiliary outputs dropped."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes)."""
        output = self.network(images)
        logits: Tensor = output[0] if isinstance(output, tuple | list) else output
        return logits
