"""Structure pruning to a latency: widths, heads, MLP units and blocks chosen together by measured time and loss."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path

from torch import nn

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.globs import named
from compress.core.progress import say
from compress.core.tensors import moved
from compress.criteria import unit_criteria
from compress.criteria.unit_criterion import ScoringData
from compress.export.exporters import ExportConfig
from compress.export.exporters import export as export_onnx
from compress.export.quick import export_quickly
from compress.graph.apply import apply
from compress.graph.exactness import Exactness
from compress.graph.graph import Graph, inside
from compress.graph.plan import Plan, make_plan
from compress.graph.select import Choice, strongest
from compress.graph.widths import WidthRules, allowed_widths
from compress.latency_model.build import latency_model
from compress.latency_model.model import LatencyModel, Term
from compress.prune.allocation.allocator import Allocation, Allocator, Summand
from compress.prune.allocation.decisions import Decision, decisions_of, stages_of
from compress.prune.allocation.journal import Journal, fingerprint
from compress.prune.allocation.losses import Judges, LossTable, counted_losses, measured_losses
from compress.prune.allocation.meet import Met, Timing, key_of, meet, share_of
from compress.prune.allocation.rankings import best_ranked
from compress.prune.allocation.replay import Replay
from compress.prune.budget import BudgetConfig
from compress.prune.compensation.compensate import compensated
from compress.prune.compensation.statistics import DenseStatistics
from compress.prune.kinds import Surroundings
from compress.prune.proof import mended, with_counted_costs
from compress.prune.structure import Scored, Setting, prunable, scored_units
from compress.prune.structure_config import StructureConfig
from evaluators.datasets.holdout import unaugmented, with_holdout
from evaluators.latency.measure import Comparison, LatencyRecord, interleave, record
from evaluators.latency.operators import check_provider
from evaluators.latency.statistic import by_cpu_time

JUDGED = 200  # images that losses are measured on, of those that nothing else here sees
JUDGED_SHARE = 0.25  # of the training images, at most
READ = 400  # other images that compensation is solved on
LONGER = 1.1  # times the model's own latency, that a budget is to be before it is refused by a short measurement
PRECISION = 0.02  # width of the 95 % interval at which timing a whole network ends


def plans_by_latency(
    bundle: Bundle, config: StructureConfig, budgets: Sequence[BudgetConfig], setting: Setting, around: Surroundings
) -> list[tuple[Met, Plan]]:
    """Return for each budget the checked plan of the least loss whose measured latency is the asked one.

    Raises:
        InputError: the model, the data or the settings do not allow it, or a budget cannot be met.
    """
    with tempfile.TemporaryDirectory() as folder, on_device(bundle.model, around.device):
        search = _Search(bundle, config, setting, around, Path(folder))
        while True:
            try:
                return search.fitted(budgets)
            except _Wrong:
                continue


def refuse_times(bundle: Bundle, config: StructureConfig, around: Surroundings) -> None:
    """Raise InputError where layers cannot be timed, or the model takes less than a budget in milliseconds as it is.

    It is measured for a moment only.
    """
    if config.latencies:
        check_provider(around.latency)
    budgets = [budget for budget in config.latencies if budget.kind == "latency_ms"]
    if not budgets:
        return
    with tempfile.TemporaryDirectory() as folder:
        example = bundle.example_inputs(2)
        file = export_quickly(bundle.model, example, Path(folder) / "dense.onnx", bundle.task, bundle.inputs).path
        found = record(file, around.latency.at_most(30, 0.5, around.latency.max_seconds))
    by_cpu = by_cpu_time(found.latency_ms)
    ms = _ms(found, "cpu_p50" if by_cpu else "p50")
    for budget in budgets:
        if budget.target > LONGER * ms:
            of = " of CPU time (the machine is busy)" if by_cpu else ""
            raise InputError(_removes_nothing(budget, budgets, ms, of))


def _removes_nothing(budget: BudgetConfig, budgets: Sequence[BudgetConfig], ms: float, of: str = "") -> str:
    return f"{key_of(budget, budgets)} ms removes nothing: the model takes {ms:.3g} ms{of} as it is"


class _Wrong(Exception):
    """A choice was seen to be wrong; the graph is without what made it so."""


class _Search:
    """One model, whose graph loses what turns out wrong; measurements are kept."""

    def __init__(
        self, bundle: Bundle, config: StructureConfig, setting: Setting, around: Surroundings, folder: Path
    ) -> None:
        self.bundle, self.config, self.setting, self.around, self.folder = bundle, config, setting, around, folder
        self.model, self.inputs = bundle.model, moved(bundle.example_inputs(), around.device)
        graph = prunable(self.model, self.inputs, config, bundle.known)
        self.graph = replace(graph, blocks=tuple(block for block in graph.blocks if _may_go(block, graph, config)))
        self.exact = Exactness(self.model, self.inputs)
        self.exporter: str = around.export.exporter
        kept = None if around.directory is None else around.directory / "allocation.json"
        about = {"prune": config.model_dump(mode="json"), "seed": around.seed, "step": around.step}
        about |= {"latency": around.latency.model_dump(mode="json"), "export": around.export.model_dump(mode="json")}
        self.journal = Journal(kept, fingerprint(self.model, about))

    def fitted(self, budgets: Sequence[BudgetConfig]) -> list[tuple[Met, Plan]]:
        """Return a plan for each budget; _Wrong where one was seen to be wrong."""
        first = scored_units(self.model, self.graph, self.config, self.setting)
        clock = self._latency_model(first[0])
        decisions = decisions_of(first[0], partial(self._choices, first[0], clock))
        stages = stages_of(first[0], self._children)
        (matched, scores), losses = self._losses(first, decisions, stages)
        stages = stages_of(replace(matched, blocks=tuple(losses.blocks)), self._children)
        terms = [_summand(term, matched.widths()) for term in clock.terms]
        allocator = Allocator(terms, decisions, losses.widths, losses.blocks, stages, losses.together)
        self._refuse(budgets, clock, allocator)
        plans: dict[str, Plan] = {}

        def measure(allocations: Sequence[Allocation]) -> list[Timing]:
            for each in allocations:
                plans[_name_of(each)] = self._checked((matched, scores), each)
            return self._timed(allocations, plans)

        met = meet(budgets, clock, allocator.within, measure)
        return [(each, plans[_name_of(each.allocation)]) for each in met]

    def _latency_model(self, graph: Graph) -> LatencyModel:
        directory = self.around.directory
        return latency_model(
            self.model, graph, self.inputs, self.around.latency, None if directory is None else directory / "latency"
        )

    def _choices(self, graph: Graph, clock: LatencyModel, name: str) -> list[int]:
        """Return the widths of a group that are worth their time and that the recipe allows."""
        align = 1 if self.config.align == "auto" else self.config.align
        rules = WidthRules(align, self.config.min_width, self.config.min_fraction, full=self.setting.full)
        allowed = set(allowed_widths(graph.group(name), rules))
        return [width for width in clock.choices(name) if width in allowed]

    def _losses(
        self, scored: Scored, decisions: Sequence[Decision], stages: Mapping[str, tuple[tuple[str, ...], bool]]
    ) -> tuple[Scored, LossTable]:
        """Return what each choice loses: measured where there are training images, else told by the criterion.

        And the graph with scores by which units go, of the criterion or, where it loses less, of an alternative.
        """
        graph, scores = scored
        data = self.around.data
        if data is None or data.train is None:
            say("no data: what a choice loses is told by the criterion's scores, not measured")
            costs = ScoringData(graph, counted="macs").costs()
            return scored, counted_losses(graph, scores, costs, decisions)
        share = min(JUDGED / data.train.num_samples, JUDGED_SHARE)
        apart = with_holdout(data, share, self.around.seed)
        device, test = self.around.device, apart.test
        assert apart.train is not None and test is not None
        train = unaugmented(apart.train)  # as compensation is solved in the end

        def judges() -> Judges:
            judged = [batch.to(device, copy=True) for batch in test.batches()]
            replay = Replay(self.model, judged, data.task, graph.blocks)
            if not self.config.compensate:
                return Judges(replay, lambda small, plan: None, lambda stage, small, plan: None)
            batches = -(-READ // train.batch_size)
            seed = self.around.seed
            statistics = DenseStatistics.collect(
                self.model, graph, lambda: islice(train.epoch(0), batches), data.task, device=device, seed=seed
            )
            few = list(islice(train.epoch(0), -(-batches // 2)))

            def refit(stage: str, small: nn.Module, plan: Plan) -> None:
                within = (stage,) if stage else None
                compensated(small, self.model, plan, lambda: few, data.task, device=device, seed=seed, within=within)

            return Judges(replay, statistics.repair, refit)

        judge = cache(judges)
        try:
            graph, scores = best_ranked(self._rankings(scored), decisions, judge, self.journal)
            return (graph, scores), measured_losses(graph, scores, decisions, stages, judge, self.journal)
        finally:
            self.journal.save()

    def _rankings(self, scored: Scored) -> dict[str, Scored]:
        """Return graph and scores by each criterion, the recipe's first."""
        found = {self.config.criterion: scored}
        for name in self.config.alternatives if self.config.compensate else ():
            if name not in found:
                other = self.config.model_copy(update={"criterion": name, "options": unit_criteria.get(name)()})
                found[name] = scored_units(self.model, self.graph, other, self.setting)
        return found

    def _children(self, name: str) -> list[str]:
        module = self.model.get_submodule(name)
        return [f"{name}.{child}" if name else child for child, _ in module.named_children()]

    def _checked(self, scored: Scored, allocation: Allocation) -> Plan:
        """Return the plan of an allocation, after it was seen to compute what it should.

        Raises:
            _Wrong: it does not; what makes it wrong stays whole from now on.
        """
        graph, scores = scored
        full = graph.widths()
        kept = {n: strongest(scores[n], w) for n, w in allocation.widths.items() if w < full[n]}
        dropped = allocation.dropped
        plan = make_plan(self.model, graph, kept, dropped=dropped, align=self._align)
        fault = self.exact.fault(graph, kept, dropped, finished=plan)
        if fault is None:
            return with_counted_costs(self.model, self.inputs, self.exact, plan, graph)
        if dropped and self.exact.fault(graph, {}, dropped) is not None:
            alone = [block for block in dropped if self.exact.fault(graph, {}, (block,)) is not None]
            say(f"these blocks stay, and the choice is made again: {', '.join(alone or dropped)}: {fault}")
            stay = set(alone or dropped)
            self.graph = replace(self.graph, blocks=tuple(block for block in self.graph.blocks if block not in stay))
        else:
            choice = Choice(dict(allocation.widths), kept, 0.0)
            self.graph = mended(self.graph, graph, choice, partial(self.exact.fault, graph, dropped=dropped), fault)
        raise _Wrong

    @property
    def _align(self) -> int:
        return 1 if self.config.align == "auto" else self.config.align

    def _timed(self, allocations: Sequence[Allocation], plans: dict[str, Plan]) -> list[Timing]:
        """Return the timing of whole networks, all in turns with the dense one, those before as they were then."""
        names = [_name_of(each) for each in allocations]
        new = [name for name in dict.fromkeys(names) if f"timed {name}" not in self.journal]
        if new:
            dense = self._dense_file
            files = [self._exported(apply(plans[name], self.model), f"small{n}") for n, name in enumerate(new)]
            precision = min(self.around.latency.precision, PRECISION)
            config = self.around.latency.sized(self.bundle.preprocessing.input_size)
            config = config.model_copy(update={"precision": precision})
            found = interleave([dense, *files], config)
            for name, timing in zip(new, _timings(found), strict=True):
                self.journal[f"timed {name}"] = list(astuple(timing))
            self.journal.save()
        return [Timing(*self.journal[f"timed {name}"]) for name in names]

    @cached_property
    def _dense_file(self) -> Path:
        return self._exported(self.model, "dense")

    def _exported(self, module: nn.Module, name: str) -> Path:
        """Write a network to be timed, all of them with the same exporter: auto would try two on each."""
        example, path = self.bundle.example_inputs(2), self.folder / f"{name}.onnx"
        if self.exporter == "auto":
            result = export_quickly(module, example, path, self.bundle.task, self.bundle.inputs)
            self.exporter = result.exporter
            return result.path
        config = ExportConfig.model_validate({**self.around.export.model_dump(), "exporter": self.exporter})
        return export_onnx(module, example, path, config, self.bundle.task, self.bundle.inputs).path

    def _refuse(self, budgets: Sequence[BudgetConfig], clock: LatencyModel, allocator: Allocator) -> None:
        """Raise InputError for a budget that the dense model meets already, or that no choice can."""
        for budget in budgets:
            share = share_of(budget, clock.dense_ms)
            if share >= 1:
                raise InputError(_removes_nothing(budget, budgets, clock.dense_ms))
            least = allocator.least()
            if (least_ms := clock.constant + clock.factor * least) > share * clock.dense_ms * 1.03:
                allocation = allocator.within(least * (1 + 1e-9) + 1e-12)
                assert allocation is not None
                holds = "; ".join(_heaviest(clock, allocation))
                raise InputError(
                    f"{key_of(budget, budgets)} cannot be met; the least that can be reached is "
                    f"{least_ms / clock.dense_ms:.3f} of the dense latency, {least_ms:.3g} ms, with every width and "
                    f"block at its least (prune.min_fraction {self.config.min_fraction:g}); most is then left in "
                    f"{holds}"
                )


def _summand(term: Term, full: Mapping[str, int]) -> Summand:
    """Return a term of the latency model in which groups that are not decided on are whole."""
    return Summand(term.groups, term.block, lambda widths: term.ms({**full, **widths}))


def _heaviest(clock: LatencyModel, allocation: Allocation, most: int = 4) -> list[str]:
    """Return the layers that hold most of the time of an allocation."""
    left = clock.by_term(allocation.widths, allocation.dropped)
    ranked = sorted(left, key=lambda name: -left[name])[:most]
    return [f"{name!r}, {clock.factor * left[name] / clock.dense_ms:.0%} of the dense latency" for name in ranked]


def _timings(found: Comparison) -> list[Timing]:
    dense, *others = found.records
    timings = []
    for small, ratio in zip(others, found.ratios, strict=True):
        low, high = (1 / each for each in reversed(ratio["ci95"]))
        clock = "cpu_p50" if ratio.get("clock") == "cpu" else "p50"
        busy = small.contended or dense.contended
        timings.append(
            Timing(1 / ratio["median"], low, high, _ms(small, clock), _ms(dense, clock), busy, clock == "cpu_p50")
        )
    return timings


def _ms(record: LatencyRecord, clock: str) -> float:
    return float(getattr(record, clock) or record.p50)


def _name_of(allocation: Allocation) -> str:
    """Return a name that allocations share which are the same network."""
    widths = " ".join(f"{name}={width}" for name, width in sorted(allocation.widths.items()))
    return f"{widths} without {' '.join(allocation.dropped) or 'nothing'}"


def _may_go(block: str, graph: Graph, config: StructureConfig) -> bool:
    """Return whether include and exclude let a block go: it is included itself, and nothing in it is excluded."""
    layers = {block, *(op.layer for op in graph.operations if inside(op.layer, (block,)))}
    if any(named(layer, glob.partition(":")[0]) for glob in config.exclude for layer in layers):  # or a group's name
        return False
    return not config.include or any(named(block, glob) for glob in config.include)
