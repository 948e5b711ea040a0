"""NAS-Bench-Macro: eight layers, each nothing or one of two MobileNetV2 blocks, for CIFAR (Su et al., section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.candidates import AdditiveMacs, Candidates
from spaces.layers import Layer
from spaces.mobilenet.blocks import block
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.tables import BlockRow, NetworkRows, layers
from spaces.registry import spaces
from spaces.space import Preset, Space, task_of
from spaces.supernet import Supernet, SupernetBlock

OPERATIONS = ("identity", "mb3_k3", "mb6_k5")
"""In the order of the benchmark's digits."""


class NasBenchMacroConfig(Config):
    """Size of the space; the defaults are the benchmark's."""

    stem: int = Field(32, ge=1, description="channels of the stem; every stage doubles them")
    depths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 3, 3), min_length=1, description="layers of each stage; the first halves the map"
    )


@spaces.register("nas_bench_macro")
class NasBenchMacro(Space):
    """Each layer is the identity, or an inverted residual with kernel 3 and expansion 3, or kernel 5 and expansion 6.

    The first layer of a stage halves the map and doubles the channels; its "identity" is a linear 1x1 convolution.
    The code is the benchmark's string of one digit a layer: 0 identity, 1 mb3_k3, 2 mb6_k5.
    """

    Config = NasBenchMacroConfig
    default_task = task_of(num_outputs=10, in_chans=3, img_size=32)
    presets: ClassVar[Mapping[str, Preset]] = {
        "best": Preset("the best of all 6,561 on CIFAR-10: 93.13 %", code="22212220"),
    }
    config: NasBenchMacroConfig

    def _decisions(self) -> Sequence[Decision]:
        return [Decision(f"layer{layer}", OPERATIONS) for layer in range(1, sum(self.config.depths) + 1)]

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a string such as `22212220`."""
        expected = len(self.decisions)
        if not isinstance(code, str) or len(code) != expected:
            raise InputError(f"a code of space {self.name} is a string of {expected} digits 0, 1 or 2; got {code!r}")
        wrong = [
            f"{decision.name}: got {digit!r}; allowed 0 (identity), 1 (mb3_k3) or 2 (mb6_k5)"
            for decision, digit in zip(self.decisions, code, strict=True)
            if digit not in "012"
        ]
        if wrong:
            raise InputError(*wrong)
        return {decision.name: OPERATIONS[int(digit)] for decision, digit in zip(self.decisions, code, strict=True)}

    def to_code(self, arch: Mapping[str, Choice]) -> str:
        """Return the benchmark's string of digits."""
        checked = self.check(arch)
        return "".join(str(OPERATIONS.index(checked.text(decision.name))) for decision in self.decisions)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return the encoding with the identities at the end of each stage, where they change nothing."""
        found: list[str] = []
        operations = self.operations(arch)
        for stage, depth in enumerate(self.config.depths):
            first, *rest = (operations[stage, layer] for layer in range(depth))
            found += [first, *sorted(rest, key=lambda name: name == "identity")]
        return Architecture(dict(zip((decision.name for decision in self.decisions), found, strict=True)))

    def operations(self, arch: Mapping[str, Choice]) -> dict[tuple[int, int], str]:
        """Return the operation of each layer by (stage, layer), counted from 0."""
        places = [(stage, layer) for stage, depth in enumerate(self.config.depths) for layer in range(depth)]
        return {place: str(arch[decision.name]) for place, decision in zip(places, self.decisions, strict=True)}

    def rows(self, arch: Architecture) -> NetworkRows:
        """Return the rows of the network; layers that do nothing have none."""
        stages: list[list[BlockRow]] = [[] for _ in self.config.depths]
        for (stage, layer), name in self.operations(arch).items():
            out = self.config.stem * 2 ** (stage + 1)
            row = operation(name, out if layer else out // 2, out)
            if row is not None:
                stages[stage].append(row)
        blocks = tuple(map(tuple, stages))
        stem = self.config.stem
        return NetworkRows(stem, blocks, 1280, None, stem_stride=1, stem_activation="relu", last_activation="relu")

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return MobileNet(self.rows(arch), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        return layers(self.rows(arch), task)

    def _supernet(self, task: Task) -> Supernet:
        return NasBenchMacroSupernet(self, task)


def operation(name: str, in_channels: int, out: int) -> BlockRow | None:
    """Return the block of an operation; None for the identity where channels stay. Where they change, maps halve."""
    stride = 1 if in_channels == out else 2
    if name == "identity":
        return BlockRow(1, 0, out, 2, activation="none", operation="conv") if stride == 2 else None
    kernel, ratio = (3, 3) if name == "mb3_k3" else (5, 6)
    return BlockRow(kernel, in_channels * ratio, out, stride)


def all_operations(in_channels: int, row: BlockRow) -> Candidates:
    """Return the candidates of one layer."""
    options = {name: operation(name, in_channels, row.out) for name in OPERATIONS}
    return Candidates({name: block(in_channels, each) if each else nn.Identity() for name, each in options.items()})


class NasBenchMacroSupernet(Supernet):
    """A network whose layers hold every candidate operation; stem, last convolution and classifier are shared."""

    space: NasBenchMacro

    def __init__(self, space: NasBenchMacro, task: Task) -> None:
        super().__init__(space, task)
        whole = space.rows(space.parse("2" * len(space.decisions)))
        self.network = MobileNet(whole, task, all_operations)

    def _activate(self, arch: Architecture) -> None:
        for (stage, layer), name in self.space.operations(arch).items():
            self._candidates(stage, layer).choose(name)

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        """Return the layers and their operations."""
        return {decision.name: decision.choices for decision in self.space.decisions}

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        layers = [layer for stage in self.network.stages for layer in stage.children()]
        for layer, chosen in zip(layers, weights.values(), strict=True):
            cast(Candidates, layer).mix({str(choice): weight for choice, weight in chosen.items()})

    def blocks(self) -> Sequence[SupernetBlock]:
        """Return the stages, the first with the stem before it, the last with the last convolution after it."""
        network, stages = self.network, list(self.network.stages)
        stem = (network.stem, network.stem_norm, network.stem_activation)
        last = (network.last, network.last_norm, network.last_activation)
        decisions = iter(self.space.decisions)
        found = []
        for index, stage in enumerate(stages):
            names = [next(decisions).name for _ in range(self.space.config.depths[index])]
            enter, leave = stem if index == 0 else (), last if stage is stages[-1] else ()
            width = network.last.out_channels if leave else self.space.config.stem * 2 ** (index + 1)
            found.append(NasBenchMacroBlock(names, [*enter, stage, *leave], stage, width))
        return found

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation over operations that are drawn independently."""
        return self._macs.expected(weights)

    @cached_property
    def _macs(self) -> AdditiveMacs:
        return AdditiveMacs(self.space, self.task)

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the shared state under the names of `arch`'s stand-alone network."""
        state = {name: value for name, value in self.network.state_dict().items() if not name.startswith("stages.")}
        kept = [0] * len(self.network.stages)
        for (stage, layer), chosen in self.space.operations(arch).items():
            module = self._candidates(stage, layer)[chosen]
            if not isinstance(module, nn.Identity):
                state |= module.state_dict(prefix=f"stages.{stage}.{kept[stage]}.")
                kept[stage] += 1
        return state

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture."""
        return cast(Tensor, self.network(images))

    def _candidates(self, stage: int, layer: int) -> Candidates:
        return cast(Candidates, cast(nn.Sequential, self.network.stages[stage])[layer])


class NasBenchMacroBlock(SupernetBlock):
    """The layers of one stage, whose operations it decides."""

    def __init__(self, names: Sequence[str], modules: Sequence[nn.Module], stage: nn.Module, width: int) -> None:
        """`names` are the decisions of the layers of `stage`, one of the `modules`; `width` channels come out."""
        super().__init__()
        self.names, self.outputs = tuple(names), {width: 1}
        self.stage, self.layers = stage, nn.Sequential(*modules)

    def paths(self, before: Mapping[str, Choice]) -> Sequence[Mapping[str, Choice]]:
        """Return all combinations of operations."""
        each = product(OPERATIONS, repeat=len(self.names))
        return [{**before, **dict(zip(self.names, operations, strict=True))} for operations in each]

    def code(self, path: Mapping[str, Choice]) -> str:
        """Return the benchmark's digit for each layer."""
        return "".join(str(OPERATIONS.index(str(path[name]))) for name in self.names)

    def activate(self, path: Mapping[str, Choice]) -> None:
        """Let `forward` compute the operations of a path."""
        for name, layer in zip(self.names, self.stage.children(), strict=True):
            cast(Candidates, layer).choose(str(path[name]))

    def forward(self, features: Tensor) -> Tensor:
        """Map images (N, C, H, W) or the features of the block before to (N, C', H', W')."""
        return cast(Tensor, self.layers(features))
