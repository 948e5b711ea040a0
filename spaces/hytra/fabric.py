"""The grid of scales and layers, and the paths through it.

A layer works on a *scale*: how many more times its map can be halved, so 0 is the smallest map. A layer stays on the
scale of the one before it or goes down by one; it never goes up. The smallest maps offer attention beside convolution.
A *code* names scale and operation at once, counted from the smallest map, attention first. Of four scales with
attention on two (BossNAS, figure 2), 0 and 1 are ResAtt and ResConv at 7x7, 2 and 3 the same at 14x14, 4 and 5 ResConv
at 28x28 and 56x56.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from spaces.architecture import Choice, Condition, Decision, either

Operation = Literal["conv", "attention"]
STEPS = ("stay", "down")
OPERATIONS: tuple[Operation, ...] = ("conv", "attention")


@dataclass(frozen=True)
class Fabric:
    """Which paths there are.

    Attributes:
        block_scales: per block, how many scales its layers may use, counted from the smallest map.
        layers: of a path; the blocks share them equally.
        attention: how many scales offer attention, counted from the smallest map.
        sizes: side of the map of each scale in pixels, smallest first; for messages only.
    """

    block_scales: tuple[int, ...]
    layers: int
    attention: int
    sizes: tuple[int, ...]

    @property
    def block_layers(self) -> int:
        """Layers of one block."""
        return self.layers // len(self.block_scales)

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """The largest scale that each layer may have so that all later layers can keep to their block's scales.

        A block starts on the scale on which the one before it ends, or one below, and has weights for its own scales
        only; so the last layer of a block is bound by the next block too.
        """
        bounds: list[int] = []
        later = max(self.block_scales)
        for layer in reversed(range(self.layers)):
            scales = self.block_scales[layer // self.block_layers]
            if (layer + 1) % self.block_layers:
                bounds.append(min(scales - 1, later + 1))
            else:
                bounds.append(min(scales - 1, later))
            later = bounds[-1]
        return tuple(reversed(bounds))

    def code(self, scale: int, operation: str) -> int:
        """Return the published number of an operation on a scale."""
        return 2 * scale + (operation == "conv") if scale < self.attention else scale + self.attention

    def place(self, code: int) -> tuple[int, Operation]:
        """Return the scale and the operation of a code, the inverse of `code`."""
        if code < 2 * self.attention:
            return code // 2, "conv" if code % 2 else "attention"
        return code - self.attention, "conv"

    def codes(self, scales: int) -> range:
        """Return the codes of the `scales` smallest maps."""
        return range(scales + min(scales, self.attention))

    def allowed(self, layer: int, before: int | None) -> tuple[int, ...]:
        """Return the scales that `layer` may have after a layer on scale `before` (None: it is the first)."""
        largest = self.largest[layer]
        nearest = range(largest, -1, -1) if before is None else (before, before - 1)
        return tuple(scale for scale in nearest if 0 <= scale <= largest)

    def scales(self, taken: Mapping[str, Choice], layers: int) -> list[int]:
        """Return the scales of the first `layers` layers; `taken` holds the steps that could be chosen."""
        start = taken["layer0.scale"]
        assert isinstance(start, int)
        scales = [start]
        for layer in range(1, layers):
            step = taken.get(f"layer{layer}.step")
            scales.append(scales[-1] - 1 if step == "down" else min(scales[-1], self.largest[layer]))
        return scales

    def path(self, taken: Mapping[str, Choice], layers: int) -> tuple[int, ...]:
        """Return the codes of the first `layers` layers."""
        scales = self.scales(taken, layers) if layers else []
        operations = (str(taken.get(f"layer{layer}.operation", "conv")) for layer in range(layers))
        return tuple(self.code(scale, operation) for scale, operation in zip(scales, operations, strict=True))

    def decisions(self) -> Iterator[Decision]:
        """Yield the decisions; every combination of choices is a path."""
        for layer in range(self.layers):
            if layer == 0:
                yield Decision("layer0.scale", self.allowed(0, None))
            elif self.largest[layer] > 0:
                yield Decision(f"layer{layer}.step", STEPS, self._may_choose(layer))
            if self.attention:
                yield Decision(f"layer{layer}.operation", OPERATIONS, self._offers_attention(layer))

    def _may_choose(self, layer: int) -> Condition:
        """Return the condition that the map of the layer before can be kept and can be halved."""
        free = list(range(self.largest[layer], 0, -1))
        text = f"where layer {layer - 1} is on scale {self._named(free)}"
        return Condition(text, self._reads(layer), lambda taken: self.scales(taken, layer)[-1] in free)

    def _offers_attention(self, layer: int) -> Condition | None:
        if self.largest[layer] < self.attention:
            return None
        offered = [scale for scale in range(self.largest[layer], -1, -1) if scale < self.attention]
        text = f"where layer {layer} is on scale {self._named(offered)}, and is conv elsewhere"
        return Condition(text, self._reads(layer + 1), lambda taken: self.scales(taken, layer + 1)[-1] in offered)

    def _reads(self, layers: int) -> tuple[str, ...]:
        steps = tuple(f"layer{layer}.step" for layer in range(1, layers) if self.largest[layer] > 0)
        return ("layer0.scale", *steps)

    def _named(self, scales: list[int]) -> str:
        pixels = either(tuple(f"{self.sizes[scale]}x{self.sizes[scale]}" for scale in scales))
        return f"{either(tuple(scales))} (maps of {pixels})"

    def block_paths(self, largest: int, searched: bool = False) -> list[tuple[int, ...]]:
        """Return all paths through one block, as codes.

        Args:
            largest: scale on which the block before ends (the first block: the largest scale of all).
            searched: keep only paths that start on `largest` or one below, so that they follow on the block before;
                these are the ones that BossNAS trains and rates.
        """
        paths: list[tuple[int, ...]] = [()]
        for layer in range(self.block_layers):
            paths = [
                (*path, code)
                for path in paths
                for code in self.codes(largest + 1)
                if self._follows(path, self.place(code)[0], largest if searched or layer else None)
            ]
        return paths

    def _follows(self, path: tuple[int, ...], scale: int, before: int | None) -> bool:
        if path:
            before = self.place(path[-1])[0]
        return before is None or scale in (before, before - 1)
