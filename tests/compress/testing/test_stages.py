"""What compress.testing asks of a stage: the shipped ones hold it, and what does not is found out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from compress.core.config import Config
from compress.runs.artifact import Artifact
from compress.runs.context import Context
from compress.runs.measure import measured
from compress.runs.stage import Stage, stages
from compress.testing.stages import check_stage

TRAINED = {"epochs": 1, "warmup_epochs": 0}
SEARCH = {
    "space": {"name": "mobilenetv3", "preset": "tiny"},
    "strategy": {"name": "random"},
    "objective": {"maximize": ["params"]},
    "evaluator": {"kind": "proxy", "scores": ["params"]},
    "trials": 2,
}
EXPORT: dict[str, Any] = {"exporter": "torchscript"}
NO_DATA: dict[str, Any] = {"data": {"name": "none"}}
STEPS = {"kind": "structure", "criterion": "magnitude", "ratio": 0.2, "steps": 2, "step_epochs": 1}


@pytest.mark.parametrize(
    ("name", "section", "others"),
    [
        ("search", SEARCH, {"model": None}),
        ("train", TRAINED, {}),
        ("prune", STEPS, {"finetune": TRAINED}),
        ("prune", [{"kind": "merge"}, {"kind": "weights", "sparsity": 0.5}], NO_DATA),
        ("finetune", {**TRAINED, "distill": {"loss": "kd"}}, {"prune": {"kind": "weights", "sparsity": 0.5}}),
        ("export", EXPORT, NO_DATA),
        ("latency", {"runs": 3, "seconds": 0, "max_seconds": 1}, {"export": EXPORT, **NO_DATA}),
    ],
)
def test_a_shipped_stage_is_what_a_run_relies_on(name: str, section: Any, others: dict[str, Any]) -> None:
    check_stage(name, section, **others)


class NudgeConfig(Config):
    by: float = Field(0.1, ge=0, description="what is added to every bias")


class Nudge(Stage[NudgeConfig]):
    order, Config, description = 45, NudgeConfig, "biases are larger"

    def run(self, artifact: Artifact, config: NudgeConfig, context: Context) -> Artifact:
        artifact.loaded.model.linear.bias.data += config.by
        return Artifact(measured(artifact.loaded, context))


class Forgetful(Nudge):
    def restore(self, artifact: Artifact, config: NudgeConfig, context: Context) -> Artifact:
        return artifact


class Hasty(Nudge):
    def estimate(self, act: Any, outlook: Any) -> Any:
        yield "nudge", -1.0


@pytest.mark.parametrize(
    ("stage", "problem"),
    [(Nudge, None), (Forgetful, "resumed run ends with another model"), (Hasty, "less than nothing")],
)
def test_a_stage_that_is_not_is_told_what_is_wrong(stage: type[Nudge], problem: str | None) -> None:
    stages.register("nudge")(stage)
    try:
        if problem is None:
            check_stage("nudge", {}, **NO_DATA)
            return
        with pytest.raises(AssertionError, match=problem):
            check_stage("nudge", {}, **NO_DATA)
    finally:
        del stages._items["nudge"]
