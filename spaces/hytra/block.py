"""A block of the supernet: layers with weights of their own for each operation on each scale."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from compress.core.errors import InputError
from spaces.architecture import either
from spaces.hytra.config import HyTraConfig
from spaces.hytra.fabric import Fabric
from spaces.hytra.layer_plans import drop_path_rate
from spaces.hytra.operations import Entry, Style, make_body, make_patches, style_of

Route = list[tuple["Candidate", bool]]
"""Per layer, the candidate that runs and whether it halves the map."""


class Candidate(nn.Module):
    """One operation on one scale: a body, an entry for maps of its own scale, and one for the next larger ones.

    `larger` is the width of those, None on the largest scale of the block. In the first layer no path reaches that
    entry, since patches bring the stem's map to the candidate's own scale; it is there as in the released supernet.
    """

    def __init__(
        self, operation: str, in_channels: int, channels: int, larger: int | None, style: Style, drop_path: float
    ) -> None:
        super().__init__()
        self.same = Entry(in_channels, channels, 1, style)
        self.down = None if larger is None else Entry(larger, channels, 2, style)
        self.body = make_body(operation, channels, style, drop_path)
        self.activation = style.activation()

    def entry(self, down: bool) -> Entry:
        """Return the entry for larger maps or the one for maps of its own scale."""
        return self.down if down and self.down is not None else self.same

    def forward(self, x: Tensor, down: bool) -> Tensor:
        """Map features of the candidate's scale, or with `down` of the next larger one, to its own."""
        shortcut, main = self.entry(down)(x)
        out: Tensor = self.activation(self.body(main) + shortcut)
        return out


class Block(nn.Module):
    """Some layers, each a table of candidates by code; the first block also has patches by scale."""

    def __init__(self, config: HyTraConfig, fabric: Fabric, index: int) -> None:
        super().__init__()
        widths, scales = config.channels[::-1], fabric.block_scales[index]
        self.fabric, self.widths = fabric, widths
        self.patches = nn.ModuleList()
        for scale in range(scales if index == 0 else 0):
            patch = 2 ** (len(widths) - 1 - scale)
            self.patches.append(make_patches(config.stem_channels, widths[scale] // 4, patch))
        first = index * fabric.block_layers
        layers = range(first, first + fabric.block_layers)
        self.layers = nn.ModuleList(_candidates(config, fabric, layer, scales) for layer in layers)

    def route(self, path: Sequence[int], before: int | None) -> Route:
        """Return which candidates a path of codes runs after a layer on scale `before` (None: after the stem).

        Raises InputError for a path of the wrong length, or one that leaves the scales or skips or rises.
        """
        if len(path) != len(self.layers):
            raise InputError(f"a path through this block has {len(self.layers)} codes; got {list(path)}")
        found: Route = []
        for layer, code in zip(self.layers, path, strict=True):
            assert isinstance(layer, nn.ModuleDict)
            allowed = self._allowed(layer, before)
            if code not in allowed:
                words = either(allowed) if allowed else "none, since these features are larger than the block's maps"
                raise InputError(f"path {list(path)} through this block: got code {code}; allowed {words}")
            candidate, scale = layer[str(code)], self.fabric.place(code)[0]
            assert isinstance(candidate, Candidate)
            found.append((candidate, before is not None and scale < before))
            before = scale
        return found

    def forward(self, features: Tensor, path: Sequence[int]) -> Tensor:
        """Map the features of the block before (the first block: of the stem) along a path of codes."""
        before = None if self.patches else self.widths.index(features.shape[1])
        route = self.route(path, before)
        if self.patches:
            features = self.patches[self.fabric.place(path[0])[0]](features)
        return follow(route, features)

    def _allowed(self, layer: nn.ModuleDict, before: int | None) -> tuple[int, ...]:
        """Return the codes for which `layer` has weights that fit features of scale `before`."""
        codes = [int(code) for code in layer]
        if before is None:
            return tuple(codes)
        largest = self.fabric.place(max(codes))[0]
        near = (before, before - 1) if before <= largest else ()
        return tuple(code for code in codes if self.fabric.place(code)[0] in near)


def follow(route: Route, features: Tensor) -> Tensor:
    """Run features through the candidates of a route, one after the other."""
    for candidate, down in route:
        features = candidate(features, down)
    return features


def _candidates(config: HyTraConfig, fabric: Fabric, layer: int, scales: int) -> nn.ModuleDict:
    style, widths = style_of(config), config.channels[::-1]
    found = nn.ModuleDict()
    for code in fabric.codes(scales):
        scale, operation = fabric.place(code)
        channels = widths[scale]
        incoming = channels if layer else channels // 4
        larger = widths[scale + 1] if scale + 1 < scales else None
        found[str(code)] = Candidate(operation, incoming, channels, larger, style, drop_path_rate(config, layer))
    return found
