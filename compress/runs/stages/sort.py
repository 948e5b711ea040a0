"""The section `sort`: one training for a network and its nested sub-networks, which are then a family of sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from compress.bundle import Bundle
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import measured
from compress.runs.recipe_file import Finding
from compress.runs.stage import Act, Seconds, Stage, as_list, stages
from compress.runs.stages.train import no_longer
from compress.sorted.config import SortConfig
from compress.sorted.family import FOLDER
from compress.sorted.rating import make_family
from compress.sorted.timing import briefly, timed
from compress.sorted.training import Surroundings, check_sorting, estimate, nested, sort

SECONDS_OF_EXPORT = 1.0
"""Of writing and checking a member's file: a small MobileNetV3 takes 0.4 s, a Swin 2 s."""


@stages.register("sort")
class Sort(Stage[SortConfig]):
    """Training of a network and of its nested sub-networks at once; what goes on is the full network."""

    order = 47
    Config: ClassVar[type[SortConfig]] = SortConfig
    description = "one training for the network and its nested sub-networks, a family of sizes"
    may_grow = ("epochs",)

    def check(self, config: SortConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there is nothing to train on, or that a pruning before it leaves single weights out."""
        data = sections.get("data")
        if data is not None and data.absent:
            yield key, "needs images, but data.name is none; leave the section out or name a data set"
        if any(pruning.leaves_masks for pruning in as_list(sections.get("prune"))):
            yield key, "nested widths would move the weights that prune.kind weights removes; allowed: other kinds"

    def check_model(self, config: SortConfig, bundle: Bundle) -> None:
        """Raise InputError where the model has no such sub-networks."""
        check_sorting(bundle, config)

    def run(self, artifact: Artifact, config: SortConfig, context: Context) -> Artifact:
        """Train all members, evaluate each, time some, and leave the family in the run's folder family/.

        Raises:
            InputError: the model cannot be narrowed or its units not be ordered, or the family is not one.
            Diverged: the loss is not finite (the last checkpoint is from before).
        """
        bundle, data, seed = artifact.loaded, context.data, context.recipe.seed
        assert data is not None  # the recipe's checks refuse training without data
        found = nested(bundle, config, seed)
        say(f"sort: {len(found.members):,} networks share their weights")
        around = Surroundings(data, context.device, seed, context.directory / "checkpoint", context.resume, context.log)
        result = sort(bundle, found, config, around)
        family = make_family(
            context.run / FOLDER, found.network, bundle, found.members, data, context.device, config.bn_recalibrate
        )
        latency = context.recipe.section("latency")
        if latency is not None:
            family = timed(family, latency, config.timed)
            family.save()
        context.details |= {
            "epochs_run": result.epochs_run,
            "stopped_by": result.stopped_by,
            "seconds_training": round(result.seconds, 3),
            "members": len(family.members),
            "decisions": {each.name: list(each.choices) for each in found.network.space.decisions},
        }
        return Artifact(measured(bundle, context))

    def asks_target(self, config: SortConfig) -> bool:
        """Return that it does: members are timed there."""
        return True

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of training all members and of evaluating each once, and that of timing some."""
        assert outlook.data is not None
        seconds = estimate(outlook.bundle, act.config, outlook.data, outlook.device, outlook.evaluation)
        yield self.name, outlook.share_left * seconds
        latency = outlook.recipe.section("latency")
        if latency is not None:
            yield "timing members", act.config.timed * (briefly(latency).seconds + SECONDS_OF_EXPORT)

    def cannot_grow(self, key: str, was: int, config: SortConfig, finished: bool) -> str | None:
        """Return why a training may not get more epochs: its learning rates, or it is over."""
        return no_longer(config, finished)
