"""Second moments of what layers read, in float64: G = X^T X / n with the means, over rows drawn at random."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.criteria.consumers import (
    LIMIT,
    Reader,
    at_rows,
    columns,
    count_rows,
    drawn_rows,
    reader,
    reproduces,
)
from compress.criteria.unit_criterion import ScoringData

ROWS, ROWS_PER_INPUT = 8192, 10


@dataclass
class Moments:
    """Sums over rows of what a layer reads: `products` (groups, d, d), `totals` (groups, d); `bias`: it has one."""

    bias: bool
    rows: int = 0
    products: Tensor | None = None
    totals: Tensor | None = None

    def add(self, read: Tensor) -> None:
        """Add what was read at some rows, (rows, groups, d)."""
        x = read.double().transpose(0, 1)
        products = x.transpose(1, 2) @ x
        self.products = products if self.products is None else self.products + products
        self.totals = x.sum(1) if self.totals is None else self.totals + x.sum(1)
        self.rows += x.shape[1]

    def centred(self) -> Tensor:
        """Return the second moments (groups, d, d), about the mean where there is a bias."""
        assert self.products is not None and self.totals is not None
        products, mean = self.products / self.rows, self.totals / self.rows
        return products - mean[:, :, None] * mean[:, None, :] if self.bias else products


def second_moments(model: nn.Module, layers: Collection[str], data: ScoringData) -> dict[str, Moments]:
    """Return the second moments of what each of `layers` reads on the data to score on.

    Layers that run several times, not as their weight says, or that read too much for a full matrix, are left out.
    """
    assert data.batches is not None
    batches = list(data.batches())
    found: dict[str, Moments] = {}
    calls: dict[str, int] = dict.fromkeys(layers, 0)
    handles = []
    number = 0

    def watch(name: str, layer: Reader) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] += 1
            inputs = layer.weight[0].numel()
            wanted = -(-max(ROWS, ROWS_PER_INPUT * inputs) // len(batches))
            rows = drawn_rows(count_rows(layer, output), wanted, number).to(output.device)
            read = columns(layer, args[0], output, rows)
            if name not in found:
                if not reproduces(layer, read, at_rows(layer, output, rows)):
                    return
                found[name] = Moments(bias=not isinstance(layer, nn.Linear) or layer.bias is not None)
            found[name].add(read)

        return hook

    try:
        for name in layers:
            layer = reader(model, name)
            if layer.weight[0].numel() <= LIMIT:
                handles.append(layer.register_forward_hook(watch(name, layer)))
        for number, batch in enumerate(batches):  # noqa: B007 - the hooks read it
            data.task.forward(model, batch.to(data.device, copy=True))
    finally:
        for handle in handles:
            handle.remove()
    return {name: moments for name, moments in found.items() if calls[name] == len(batches)}
