"""`prune: {kind: low_rank}`: a layer becomes two of a lower rank, by its singular values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.bundle import Bundle
from compress.core.config import Config
from compress.core.errors import CompressError, InputError
from compress.core.formatting import count, percent_change
from compress.core.progress import track
from compress.graph.graph import Skip
from compress.prune.details import replacement_details
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.ranks import Spectrum, flat, keeping, meeting, refuse_unreachable, spectrum, truncated
from compress.prune.repair import renew_norms
from compress.prune.replaceable import Replacement, nothing_left, replace_layers, replaceable
from compress.transforms.low_rank import LowRank, unfit

BN_BATCHES = 20
"""Training batches on which batch norms are estimated anew."""


class RankBudget(Config):
    """How much of the model to keep; exactly one of the two."""

    macs: float | None = Field(None, gt=0, lt=1, description="fraction of the MACs to keep, met within 0.02")
    params: float | None = Field(None, gt=0, lt=1, description="fraction of the parameters to keep, met within 0.02")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.macs is None) == (self.params is None):
            raise ValueError("give exactly one of macs and params")
        return self

    @property
    def counted(self) -> Literal["macs", "params"]:
        """Which of the two is given."""
        return "params" if self.macs is None else "macs"

    @property
    def target(self) -> float:
        """The fraction to keep."""
        return float(getattr(self, self.counted))


@prune_kinds.register("low_rank")
class LowRankKind(PruneBase):
    """Two layers of a lower rank in place of one, by truncated singular values, where that saves: no data needed."""

    keeps_weights: ClassVar[bool] = False

    kind: Literal["low_rank"] = Field("low_rank", description="a layer becomes two of a lower rank")
    rank: int | None = Field(None, ge=1, description="channels between the two; this, `share`, `energy` or `budget`")
    share: float | None = Field(None, gt=0, lt=1, description="rank as a share of each layer's full rank")
    energy: float | None = Field(
        None, gt=0, lt=1, description="share of the squares of each layer's singular values to keep at least"
    )
    budget: RankBudget | None = Field(
        None, description="what the model may cost afterwards; ranks are chosen together, for the most energy"
    )
    include: list[str] = Field([], description="globs over layers; if given, only these are replaced")
    exclude: list[str] = Field([], description="globs over layers that stay")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [name for name in ("rank", "share", "energy", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            got = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of rank, share, energy and budget; got {got}")
        return self

    @property
    def share_left(self) -> float:
        """The share of MACs that a budget of MACs leaves."""
        return (self.budget.macs if self.budget is not None else None) or 1.0

    def check(self, bundle: Bundle) -> None:
        """Raise where a glob matches nothing, or no layer of such a shape would cost less, or as little as asked."""
        layers, _ = replaceable(bundle.model, bundle.example_inputs(), unfit, self.include, self.exclude)
        shapes = {layer.name: flat(layer) for layer in layers}
        able = self._able(shapes)
        if self.budget is not None:
            counted = self.budget.counted
            refuse_unreachable(able, counted, bundle.costs()[counted], self.budget.target)
        elif self.energy is None:  # which ranks keep so much of it, the values tell
            self._chosen(shapes, self._asked(shapes))

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle with pairs of layers, tried out against ordinary ones of the same weights."""
        layers, skipped = replaceable(bundle.model, bundle.example_inputs(), unfit, self.include, self.exclude)
        before = bundle.costs()
        spectra = {layer.name: spectrum(layer) for layer in track(layers, "singular values")}
        ranks, whole = self._ranks(spectra, before)
        chosen = [spectra[name] for name in spectra if name in ranks]
        new = []
        for each in track(chosen, "factorising"):
            weight, rank = each.layer.layer.weight, ranks[each.layer.name]
            expand, reduce = truncated(each, rank)
            values = {
                "reduce.weight": reduce.reshape(rank, *weight.shape[1:]),
                "expand.weight": expand.reshape(*expand.shape, *(1 for _ in weight.shape[2:])),
            }
            new.append(Replacement(each.layer, (expand @ reduce).reshape(weight.shape), values, "expand.bias"))
        bundle = replace_layers(bundle, LowRank(ranks=ranks), new)
        after = bundle.costs()
        _compare_costs(chosen, ranks, before, after)
        renew_norms(bundle.model, around, BN_BATCHES)
        rows = [{"name": s.layer.name, "kind": "ranks", "before": s.full, "after": ranks[s.layer.name]} for s in chosen]
        notes = _notes(chosen, ranks, before, after)
        return bundle, replacement_details(self.kind, rows, [*skipped, *whole], (before, after), notes)

    def _ranks(self, spectra: Mapping[str, Spectrum], costs: Mapping[str, int]) -> tuple[dict[str, int], list[Skip]]:
        """Return the rank of each layer that has one at which it costs less, and the other layers with the reason.

        Raises:
            InputError: no layer costs less, or the budget cannot be met.
        """
        able = self._able(spectra)
        if self.budget is None:
            return self._chosen(spectra, self._asked(spectra))
        ranks = meeting(able, self.budget.counted, costs[self.budget.counted], self.budget.target)
        return ranks, _whole(spectra, ranks, dict.fromkeys(spectra, "the budget leaves it whole"))

    def _able(self, spectra: Mapping[str, Spectrum]) -> list[Spectrum]:
        """Return the layers that have a rank at which they cost less; InputError where there are none."""
        able = [each for each in spectra.values() if each.most]
        if not able:
            raise InputError(nothing_left(_whole(spectra, {}, {})))
        return able

    def _chosen(self, spectra: Mapping[str, Spectrum], asked: Mapping[str, int]) -> tuple[dict[str, int], list[Skip]]:
        """Return those of the ranks `asked` that save something, and the other layers; InputError without any."""
        ranks = {name: rank for name, rank in asked.items() if rank <= spectra[name].most}
        why = {name: f"it costs less up to rank {spectra[name].most}, not at {rank}" for name, rank in asked.items()}
        whole = _whole(spectra, ranks, why)
        if not ranks:
            raise InputError(nothing_left(whole))
        return ranks, whole

    def _asked(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        """Return the rank that the settings ask of each layer by itself."""
        if self.energy is not None:
            return keeping(list(spectra.values()), self.energy)
        if self.share is not None:
            return {name: max(1, round(self.share * each.full)) for name, each in spectra.items()}
        return dict.fromkeys(spectra, self.rank or 1)


def _whole(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int], why: Mapping[str, str]) -> list[Skip]:
    """Return the layers without a rank, with the reason: `why`, unless no rank would save anything."""
    return [
        Skip(name, why[name] if each.most else "no rank would save anything")
        for name, each in spectra.items()
        if name not in ranks
    ]


def _compare_costs(
    chosen: Sequence[Spectrum], ranks: Mapping[str, int], before: Mapping[str, int], after: Mapping[str, int]
) -> None:
    """Raise CompressError where the new model does not cost what its ranks say.

    A module that looks at the weight of a layer which it calls as well (for its device, say) has it multiplied out.
    """
    looked_at = sum(each.dense * ranks[each.layer.name] for each in chosen)
    for key in ("params", "macs"):
        saved = sum(
            (each.dense - each.unit * ranks[each.layer.name]) * (each.layer.places if key == "macs" else 1)
            for each in chosen
        )
        if not 0 <= after[key] - (before[key] - saved) <= (looked_at if key == "macs" else 0):
            raise CompressError(
                f"the factorised model has {after[key]:,} {key} where its ranks foretell {before[key] - saved:,}; "
                "please report the model"
            )


def _notes(
    chosen: Sequence[Spectrum], ranks: Mapping[str, int], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[str]:
    kept = [float(each.kept[ranks[each.layer.name]]) for each in chosen]
    return [
        f"{len(chosen)} layers are two each: {percent_change(before['macs'], after['macs'])} MACs, "
        f"{percent_change(before['params'], after['params'])} parameters ({count(after['params'])}), in the ONNX file "
        "as well. Latency falls by less than MACs, or not at all: there are more layers, each smaller, and what lies "
        "between the two is written and read.",
        f"The singular values that stay hold {sum(kept) / len(kept):.0%} of the energy on average "
        f"({min(kept):.0%} to {max(kept):.0%}).",
    ]
