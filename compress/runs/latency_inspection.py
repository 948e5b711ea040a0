"""Where the time of a model goes on a target, layer by layer, and what narrower widths and fewer blocks would save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.core.formatting import milliseconds, three_digits
from compress.core.text_table import text_table
from compress.latency_model.model import LatencyModel


@dataclass(frozen=True)
class LatencyInspection:
    """Times in ms per batch.

    `measured_ms` is that of the whole model; `layers` (name -> ms) and `rest_ms` (what no layer has) add up to it.
    `widths` tells for each group what the model would take less, alone narrowed to each width worth considering (with
    the groups that are tied to it), `blocks` the same without a block.
    """

    measured_ms: float
    rest_ms: float
    layers: Mapping[str, float]
    widths: Mapping[str, Mapping[int, float]]
    blocks: Mapping[str, float]
    error: float
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, model: LatencyModel) -> LatencyInspection:
        """Read a latency model, scaled by the little that its prediction for the whole model is off."""
        measured = float(model.facts["measured_ms"])
        scale = measured / model.dense_ms
        return cls(
            measured_ms=measured,
            rest_ms=scale * model.constant,
            layers={name: scale * model.factor * ms for name, ms in model.by_term().items()},
            widths={
                group: {width: scale * (model.dense_ms - model.ms(model.step(group, width))) for width in choices[:-1]}
                for group, choices in model.widths.items()
            },
            blocks={block: scale * (model.dense_ms - model.ms(dropped=[block])) for block in model.graph.blocks},
            error=model.error,
            facts=model.facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "measured_ms": self.measured_ms,
            "rest_ms": self.rest_ms,
            "layers": [{"layer": name, "ms": ms, "share": ms / self.measured_ms} for name, ms in self.layers.items()],
            "widths": [
                {"group": group, "steps": [{"width": width, "saves_ms": ms} for width, ms in steps.items()]}
                for group, steps in self.widths.items()
            ],
            "blocks": [{"block": block, "saves_ms": ms} for block, ms in self.blocks.items()],
            "mean_error": self.error,
            **self.facts,
        }

    def print(self) -> None:
        """Print tables."""
        facts = self.facts
        busy = "  contended: the machine was busy meanwhile" * facts["contended"]
        print(
            f"\n{milliseconds(self.measured_ms)} of {facts['clock']} time on {facts['target']}, threads "
            f"{facts['threads']}, batch {facts['batch']}; the model meets {facts['networks']} narrowed copies within "
            f"{self.error:.1%} on average{busy}"
        )
        shares = {**self.layers, "(rest)": self.rest_ms}
        rows = [(name or "(top)", f"{ms:.4f}", f"{ms / self.measured_ms:.1%}") for name, ms in shares.items()]
        print(text_table(("layer", "ms", "share"), rows))
        print()
        saved = [(group, self._steps(steps)) for group, steps in self.widths.items()]
        print(text_table(("group", "saves ms, narrowed to"), saved, left=2))
        if self.blocks:
            print()
            rows = [(block, f"{ms:.4f}", f"{ms / self.measured_ms:.1%}") for block, ms in self.blocks.items()]
            print(text_table(("block", "saves ms", "share"), rows))

    def _steps(self, steps: Mapping[int, float]) -> str:
        found = [f"{width}: {three_digits(ms)}" for width, ms in sorted(steps.items(), reverse=True)]
        return "  ".join(found) or "no narrower width is faster"
