"""Ladder side-tuning: a small network beside a frozen one learns from its features, and no gradient enters the latter.

Sung et al., "LST: Ladder side-tuning for parameter and memory efficient transfer learning", NeurIPS 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.modes import run_once
from compress.core.tensors import Inputs
from compress.graph.apply import apply
from compress.transforms import Transform, transforms
from compress.transforms.chain import Link, has_matrix, longest_chain
from compress.transforms.narrow import PlanField
from compress.transforms.pre_norm import NoRow

TEMPERATURE = 0.1
"""T_g: gates are sigmoid(alpha / T_g), so that they learn ten times as fast."""


class Rung(nn.Module):
    """A part of the side network, with the features that it takes from the backbone through a gate.

    g = sigmoid(alpha / T_g) is the share of the side path: u = g z + (1 - g) D h.
    """

    def __init__(self, block: nn.Module, down: nn.Module | None, before: bool) -> None:
        super().__init__()
        self.block, self.down, self.before = block, down, before
        self.alpha = None if down is None else nn.Parameter(torch.zeros(1))  # a vector: it does not decay

    @property
    def gate(self) -> Tensor:
        """The share of the side path, (1,)."""
        assert self.alpha is not None
        return torch.sigmoid(self.alpha / TEMPERATURE)

    def forward(self, side: Tensor, features: Tensor) -> Tensor:
        """Return what comes out of this part for what the side network has so far and the backbone's features."""
        if self.down is None:
            return self.block(side)  # type: ignore[no-any-return]
        if self.before:
            return self.block(self._joined(side, features))  # type: ignore[no-any-return]
        return self._joined(self.block(side), features)

    def _joined(self, side: Tensor, features: Tensor) -> Tensor:
        assert self.down is not None
        joined: Tensor = self.gate * side + (1 - self.gate) * self.down(features)
        return joined


class Ladder(NoRow):
    """A frozen backbone whose last features are replaced by those of the side network, brought to the old width.

    z_0 = D_0 h_0; along the rungs z; the backbone's own head sees U z. The backbone is always in evaluation mode, runs
    without gradients up to there, and none of its parameters learns.
    """

    why_no_row: ClassVar[str] = "a side network takes the features of this model's blocks, so that these have to stay"

    def __init__(
        self, backbone: nn.Module, rungs: Mapping[str, Rung], first: str, down: nn.Module, up: nn.Module
    ) -> None:
        """Freeze `backbone`.

        Args:
            backbone: any model.
            rungs: layer of the backbone -> the part that goes on once that layer has run, in the order of the passes;
                the output of the last one is replaced.
            first: the layer that takes h_0.
            down: D_0.
            up: U.
        """
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.rungs = nn.ModuleList(rungs.values())
        self.down, self.up = down, up
        self.first, self.taps = first, tuple(rungs)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the side network alone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        """Return what the backbone's head makes of the side network's features."""
        learning = torch.is_grad_enabled()
        side: list[Tensor] = []

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            with torch.enable_grad() if learning else nullcontext():
                side[:] = [self.down(args[0])]

        def climb(rung: nn.Module, last: bool) -> Any:
            def hook(_: nn.Module, args: Any, features: Tensor) -> Tensor | None:
                with torch.enable_grad() if learning else nullcontext():
                    side[:] = [rung(side[0], features)]
                if not last:
                    return None
                if learning:
                    torch.set_grad_enabled(True)  # the head passes gradients on to the side network
                with torch.enable_grad() if learning else nullcontext():
                    return self.up(side[0])  # type: ignore[no-any-return]

            return hook

        hooks = [self.backbone.get_submodule(self.first).register_forward_pre_hook(begin)]
        for place, (tap, rung) in enumerate(zip(self.taps, self.rungs, strict=True), start=1):
            layer = self.backbone.get_submodule(tap)
            hooks.append(layer.register_forward_hook(climb(rung, place == len(self.taps))))
        try:
            with torch.no_grad() if learning else nullcontext():
                return self.backbone(x)
        finally:
            for hook in hooks:
                hook.remove()


@transforms.register("ladder")
class LadderTransform(Transform):
    """Freeze a model and set a narrow copy of its layers beside it, which takes their features."""

    kind: Literal["ladder"] = "ladder"
    plan: PlanField = Field(description="what a copy of the model lacks, of which the side network is made")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the ladder; the side network has the weights that stay of the model.

        Raises:
            InputError: the plan is for another model, or its layers do not pass their features on in a row.
        """
        chain = longest_chain(model, example_inputs)
        narrow = apply(self.plan, copy.deepcopy(model)).eval()
        shapes = _shapes(narrow, example_inputs, [link.name for link in chain])
        axis, links = _beside(model, chain, shapes)
        rungs: dict[str, Rung] = {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            for stage in _stages(model, links, axis):
                last = stage[-1]
                block = nn.Sequential(*(narrow.get_submodule(link.name) for link in stage))
                before = axis > 1 and last.takes == last.gives
                joins = has_matrix(block) and (before or axis == 1)
                down = self._between(model, last.writer, last.gives, shapes[last.name][1], axis) if joins else None
                rungs[last.name] = Rung(block if len(stage) > 1 else block[0], down, before)
            first, last = links[0], links[-1]
            down = self._between(model, first.reader, first.takes, shapes[first.name][0], axis)
            up = self._between(model, last.writer, last.gives, shapes[last.name][1], axis, up=True)
        return Ladder(model, rungs, first.name, down, up)

    def _between(
        self, model: nn.Module, layer: str | None, wide: Shape, small: Shape, axis: int, up: bool = False
    ) -> nn.Module:
        """Return D (or U) between channels of the model and of the side network: it picks (or puts back) those kept."""
        sizes = (small[axis], wide[axis]) if up else (wide[axis], small[axis])
        linear: nn.Linear | nn.Conv2d = nn.Conv2d(*sizes, 1) if axis == 1 else nn.Linear(*sizes)
        kept = self._kept(model, layer, wide[axis], small[axis])
        if kept is not None:
            with torch.no_grad():
                matrix = torch.eye(wide[axis])[kept]
                linear.weight.copy_((matrix.T if up else matrix).reshape(linear.weight.shape))
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        return linear

    def _kept(self, model: nn.Module, layer: str | None, wide: int, small: int) -> list[int] | None:
        """Return which of the channels at a layer with a weight the side network has, where the plan tells."""
        if layer is None:
            return None
        shape = model.get_parameter(f"{layer}.weight").shape
        plan = self.plan.kept.get(f"{layer}.weight", {})
        fits = [list(kept) for dim, kept in plan.items() if shape[dim] == wide and len(kept) == small]
        return fits[0] if fits else None


Shape = tuple[int, ...]


def _shapes(model: nn.Module, example_inputs: Inputs, names: Sequence[str]) -> dict[str, tuple[Shape, Shape]]:
    """Return the shapes of what each layer takes and gives."""
    found: dict[str, tuple[Shape, Shape]] = {}

    def watch(name: str) -> Any:
        def note(_: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = (tuple(args[0].shape), tuple(output.shape))

        return model.get_submodule(name).register_forward_hook(note)

    hooks = [watch(name) for name in names]
    run_once(model, example_inputs, hooks)
    return found


def _beside(
    model: nn.Module, chain: Sequence[Link], shapes: Mapping[str, tuple[Shape, Shape]]
) -> tuple[int, list[Link]]:
    """Return the axis of the channels, and the links that the side network stands beside.

    From the first layer with weights whose input is narrower there, to the last whose output is, with the norms after
    it.

    Raises:
        InputError: there are none, or they are a small part of the model.
    """
    heavy = [has_matrix(model.get_submodule(link.name)) for link in chain]
    at = {
        link.name: (_axis(link.takes, shapes[link.name][0]), _axis(link.gives, shapes[link.name][1])) for link in chain
    }
    starts = [place for place, link in enumerate(chain) if heavy[place] and at[link.name][0] is not None]
    if not starts:
        raise InputError("its layers do not pass their features on in a row, or the row cannot be narrowed")
    start, axis = starts[0], at[chain[starts[0]].name][0]
    end = start
    for place in range(start, len(chain)):
        if at[chain[place].name][1] != axis or len(chain[place].gives) != len(chain[start].takes):
            break
        end = place if heavy[place] else end
    for link in chain[end + 1 :]:
        if link.gives != chain[end].gives or not any(True for _ in model.get_submodule(link.name).parameters()):
            break
        end += 1
    links = list(chain[start : end + 1])
    weights = sum(p.numel() for link in links for p in model.get_submodule(link.name).parameters())
    if 2 * weights < sum(p.numel() for p in model.parameters()):
        raise InputError("the layers that pass their features on in a row hold less than half of its weights")
    assert axis is not None
    if axis != len(chain[start].takes) - 1 and (axis, len(chain[start].takes)) != (1, 4):
        raise InputError(f"the channels of features {chain[start].takes} are at place {axis}; allowed: first, or last")
    return axis, links


def _axis(wide: Shape, small: Shape) -> int | None:
    """Return the one dimension that differs, if there is one."""
    differ = [place for place, (a, b) in enumerate(zip(wide, small, strict=False)) if a != b]
    return differ[0] if len(wide) == len(small) and len(differ) == 1 else None


def _stages(model: nn.Module, links: Sequence[Link], axis: int) -> list[list[Link]]:
    """Return the links in groups: each alone beside tokens, by the shape of what they give beside maps."""
    if axis > 1:
        return [[link] for link in links]
    stages: list[list[Link]] = []
    for link in links:
        grown = stages and stages[-1][-1].gives == link.gives
        empty = stages and not any(has_matrix(model.get_submodule(each.name)) for each in stages[-1])
        if grown or empty:
            stages[-1].append(link)
        else:
            stages.append([link])
    return stages
