"""The sections `finetune` and `distill`: training after pruning, and learning from teachers."""

from __future__ import annotations

from typing import ClassVar

from compress.distill.finetune import DistillStageConfig, FinetuneConfig, named_after
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import measured
from compress.runs.stage import Act, Seconds, stages
from compress.runs.stages.gentle import compensated_before, train_gently
from compress.runs.stages.train import Training, train
from compress.training.config import FitConfig
from compress.training.estimate import estimate_seconds


@stages.register("finetune")
class Finetune(Training):
    """Training of the pruned model, on the labels and on the dense model's outputs if asked."""

    order = 40
    Config: ClassVar[type[FitConfig]] = FinetuneConfig
    description = "training after pruning"
    label = "fine-tuning"

    def run(self, artifact: Artifact, config: FitConfig, context: Context) -> Artifact:
        """Train the model, with its masks kept, and evaluate it."""
        bundle = artifact.loaded
        teacher = context.baseline().model if config.needs_teacher else None
        with named_after(self.name, config):
            if config.epochs and compensated_before(context.earlier):
                train_gently(bundle, config, context, self.label, teacher)
            else:
                train(bundle, config, context, self.label, teacher)
        return Artifact(measured(bundle, context))

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of training what the prunings leave, and of one evaluation."""
        assert outlook.data is not None
        model = outlook.bundle.model
        teacher = model if act.config.needs_teacher else None
        parts = model, outlook.data, act.config, outlook.device
        with named_after(self.name, act.config):
            seconds = estimate_seconds(*parts, teacher=teacher, seed=outlook.recipe.seed)
        yield self.name, seconds * outlook.share_left + outlook.evaluation


@stages.register("distill")
class Distill(Finetune):
    """Training of the model by what teachers give: other models, or the dense one."""

    order = 45
    Config = DistillStageConfig
    description = "learning from teachers: other models, or the dense one"
    label = "distilling"
