"""`prune: {kind: tokens}`: image tokens of a vision transformer leave in stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.graph.known import Known
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.transforms.paths import PathEnsemble
from compress.transforms.tokens import Mode, Tokens, TokenStages, counts_of, cuts_of, front_of, token_row


@prune_kinds.register("tokens")
class TokensConfig(PruneBase):
    """Drop or merge tokens of a vision transformer in stages (PyramidDrop): less work, the same weights."""

    cannot_follow: ClassVar[Mapping[str, str]] = {
        "paths": PathEnsemble.why_no_row,
        "tokens": TokenStages.why_no_row,
    }

    kind: Literal["tokens"] = Field(description="tokens leave, weights stay")
    keep: float = Field(0.7, gt=0, le=1, description="share of a stage's image tokens that the next one gets")
    stages: int = Field(4, ge=2, description="equal parts of the blocks; tokens leave between two of them")
    mode: Mode = Field("drop", description="leave out what the class token attends to least, or merge similar tokens")

    def check(self, bundle: Bundle) -> None:
        """Raise where the model has no row of tokens that may leave, or fewer blocks than stages."""
        self._transform(bundle)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle whose model has fewer tokens the deeper it goes; no weight changes."""
        before = bundle.costs()["macs"]
        transform = self._transform(bundle)
        model = transform.apply(bundle.model, bundle.example_inputs())
        small = replace(bundle.transformed(transform, model), known=Known())
        counts = [transform.tokens, *transform.left.values()]
        return small, {
            "kind": "tokens",
            "tokens": counts,
            "before_blocks": list(transform.left),
            "mode": self.mode,
            "predicted": {"macs": [before, small.costs()["macs"]], "params": [bundle.costs()["params"]] * 2},
            "notes": [
                f"image tokens {' -> '.join(map(str, counts))}, before blocks {', '.join(map(str, transform.left))}",
                "No weight leaves: parameters and file stay as large; with few tokens, latency falls less than MACs.",
            ],
        }

    def _transform(self, bundle: Bundle) -> Tokens:
        model, inputs = bundle.model, bundle.example_inputs()
        try:
            row = token_row(model, inputs)
        except InputError as error:
            raise InputError(f"prune: {error}") from error
        if self.stages > len(row.blocks):
            raise InputError(
                f"prune.stages: there are only {len(row.blocks)} blocks; got {self.stages}; "
                f"allowed 2 to {len(row.blocks)}"
            )
        tokens = row.inputs.shape[1] - front_of(model)[0]
        counts = counts_of(tokens, self.keep, self.stages)
        left = dict(zip(cuts_of(len(row.blocks), self.stages), counts[1:], strict=True))
        return Tokens(tokens=tokens, left=left, mode=self.mode)
