"""The arms of vs_peers.py: ways to choose what is removed, each with one number that says how much."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.graph.exactness import Exactness
from compress.graph.plan import Plan, make_plan
from compress.prune.blocks import block_influence, least_influential
from compress.prune.by_latency import plans_by_latency
from compress.prune.kinds import Surroundings, prune_bundle
from compress.prune.kinds.structure import Structure
from compress.prune.kinds.torch_pruning import TorchPruning
from compress.prune.narrow import first_batches
from compress.prune.structure import Setting, plan_structure, prunable, scored_units
from compress.transforms.narrow import Narrow


class Arm(Protocol):
    """A way to choose: plans by a strength, which may be given in advance or searched for."""

    strengths: Sequence[float]
    whole: bool  # strengths are whole numbers

    def plan(self, strength: float) -> Plan:
        """Return the plan of a strength; InputError where there is none."""


@dataclass
class Scene:
    """What all arms start from."""

    bundle: Bundle
    around: Surroundings

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return self.bundle.model

    def setting(self, batches: int) -> Setting:
        """Return what planning needs besides the model."""
        assert self.around.data is not None
        return Setting(
            batches=first_batches(self.around.data, batches), seed=self.around.seed, task=self.around.data.task
        )


RATIOS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of channels; with more, torch-pruning would take all 16 of a layer, and so leaves such a layer as it is."""


@dataclass
class TorchPruningArm:
    """torch-pruning's pruner with one importance; the strength is its pruning ratio."""

    scene: Scene
    settings: Mapping[str, Any]
    strengths: Sequence[float] = RATIOS
    whole: bool = False

    def plan(self, strength: float) -> Plan:
        """Return what it removes at this ratio, as a plan."""
        config = TorchPruning(pruning_ratio=strength, compensate=False, bn_batches=0, **self.settings)
        small, _ = prune_bundle(copy.deepcopy(self.scene.bundle), config, self.scene.around)
        last = small.transforms[-1]
        assert isinstance(last, Narrow)
        return last.plan


@dataclass
class UnitsArm:
    """A criterion of ours, or of NNI's, by this toolkit's own step; the strength is the share of units that go."""

    scene: Scene
    settings: Mapping[str, Any]
    strengths: Sequence[float] = RATIOS
    whole: bool = False

    @cached_property
    def config(self) -> Structure:
        """The settings without an amount, which every plan has of its own."""
        return Structure.model_validate({"kind": "structure", "ratio": 0.5, "min_fraction": 0.02, **self.settings})

    @cached_property
    def scored(self) -> Any:
        """The graph and what its units are worth, found once."""
        model, inputs = self.scene.model, self.scene.bundle.example_inputs()
        graph = prunable(model, inputs, self.config, self.scene.bundle.known)
        return scored_units(model, graph, self.config, self.scene.setting(self.config.calibration_batches))

    def plan(self, strength: float) -> Plan:
        """Return the plan that leaves out this share of all units."""
        config = self.config.model_copy(update={"ratio": strength})
        setting, inputs = self.scene.setting(config.calibration_batches), self.scene.bundle.example_inputs()
        return plan_structure(self.scene.model, self.scored[0], inputs, config, setting, self.scored)


@dataclass
class DepthArm:
    """Whole residual blocks, those first that change their stream least; the strength is their number."""

    scene: Scene
    whole: bool = True

    @cached_property
    def influence(self) -> dict[str, float]:
        """How much each block changes the stream, by name."""
        batches = self.scene.setting(4).batches
        assert batches is not None
        graph = self.scene.bundle.known.graph(self.scene.model, self.scene.bundle.example_inputs())
        return block_influence(self.scene.model, graph.blocks, batches(), self.scene.around.data.task.forward)

    @property
    def strengths(self) -> Sequence[float]:
        """Every number of blocks."""
        stages = {name.partition(".")[0] for name in self.influence}
        return range(1, len(self.influence) - len(stages) + 2)

    def plan(self, strength: float) -> Plan:
        """Return the plan that leaves out so many blocks."""
        model, inputs = self.scene.model, self.scene.bundle.example_inputs()
        graph = self.scene.bundle.known.graph(model, inputs)
        dropped = least_influential(self.influence, int(strength))
        left = replace(graph, groups=tuple(g for g in graph.groups if not g.name.startswith(dropped)))
        plan = make_plan(model, left, {}, dropped=dropped)
        if (fault := Exactness(model, inputs).fault(left, {}, dropped, finished=plan)) is not None:
            raise InputError(f"without {dropped}: {fault}")
        return plan


@dataclass
class LatencyArm:
    """This toolkit's own budget of latency: no strength is searched for, the ratios are asked for together."""

    scene: Scene

    def plans(self, ratios: Sequence[float]) -> list[Plan]:
        """Return the plans that are so many times as fast as the dense model."""
        shares = [{"latency": 1 / ratio} for ratio in ratios]
        config = Structure.model_validate({"kind": "structure", "budgets": shares})
        setting = self.scene.setting(config.calibration_batches)
        found = plans_by_latency(self.scene.bundle, config, config.budgets or (), setting, self.scene.around)
        return [plan for _, plan in found]


GLOBAL = {"global_pruning": True, "max_pruning_ratio": 0.9}
TAYLOR = {"importance": "taylor", "calibration_batches": 1, **GLOBAL}  # batches of 128 images
NNI = {"allocation": "uniform", "align": 1}
ARMS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "compress latency": (LatencyArm, {}),
    "compress dimap, by units": (UnitsArm, {"criterion": "dimap", "align": "auto"}),
    "uniform width": (UnitsArm, {"criterion": "magnitude", "allocation": "uniform", "align": "auto"}),
    "depth": (DepthArm, {}),
    "torch-pruning l2": (TorchPruningArm, {"importance": "l2"}),
    "torch-pruning l2, round_to 8": (TorchPruningArm, {"importance": "l2", "round_to": 8}),
    "torch-pruning l2, global": (TorchPruningArm, {"importance": "l2", **GLOBAL}),
    "torch-pruning lamp, global": (TorchPruningArm, {"importance": "lamp", **GLOBAL}),
    "torch-pruning taylor, global": (TorchPruningArm, TAYLOR),
    "torch-pruning taylor, isomorphic": (
        TorchPruningArm,
        {"isomorphic": True, **TAYLOR},
    ),
    "NNI L1Norm": (UnitsArm, {"criterion": "nni:L1NormPruner", **NNI}),
    "NNI FPGM": (UnitsArm, {"criterion": "nni:FPGMPruner", **NNI}),
    "NNI Taylor": (UnitsArm, {"criterion": "nni:TaylorPruner", **NNI}),
}


def available() -> list[str]:
    """Return the arms whose libraries are installed."""
    lacking = [kind for kind, package in (("NNI", "nni"), ("torch-pruning", "torch_pruning")) if not _there(package)]
    return [name for name in ARMS if not name.startswith(tuple(lacking))]


def arm(name: str, scene: Scene) -> Any:
    """Return the arm of this name."""
    kind, settings = ARMS[name]
    return kind(scene, settings) if settings else kind(scene)


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
