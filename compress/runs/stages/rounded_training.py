"""Training before quantising, rounded in every forward pass as the file of integers rounds.

The trained floats are then exported and quantised like any others; where their file is no better than that of the
weights from before, these stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.bundle import Bundle
from compress.core.modes import evaluating
from compress.core.progress import say
from compress.core.tensors import restore
from compress.distill.finetune import named_after
from compress.export.onnx_model import OnnxModel
from compress.quantize.choose import Candidate, Choice
from compress.quantize.float_file import FloatFile
from compress.quantize.judge import judge
from compress.quantize.rounding import roundings_of
from compress.quantize.simulation import Simulation, simulate
from compress.runs.context import Context
from compress.runs.measure import exported, measured
from compress.runs.stages.train import train
from evaluators.tasks import Task

SECTION = "quantize.finetune"
NEARER = 0.8
"""How near the rounded module has to answer to the file: mean square difference, as a part of the float module's.

Integer kernels and rounded floats part where values lie halfway: in networks with weights from training by 0.05 or
less of that, in random ones by up to 0.7.
"""
APART = 2
"""Samples by which tensors of file and module are told apart."""


@dataclass(frozen=True)
class Tuned:
    """What is to be quantised: the trained weights, or those from before.

    Attributes:
        choice: among ways for these weights.
        bundle: with them.
        details: what became of the training, for details.json; None where there was none.
        sentence: the same for people; empty where none was asked for.
        start: the weights from before, by name; empty where the model has them.
    """

    choice: Choice
    bundle: Bundle
    details: dict[str, Any] | None = None
    sentence: str = ""
    start: Mapping[str, Tensor] = field(default_factory=dict)

    def undo(self) -> None:
        """Give the model its weights from before."""
        if self.start:
            restore(self.bundle.model, self.start)


def tuned(choice: Choice, bundle: Bundle, context: Context) -> Tuned:
    """Train the bundle's model in place for the static file of `choice`; it is left as it was where that is no better.

    Both are judged by that file with all its layers in integers, on training images that nothing was learnt from.
    """
    config, way = choice.config.finetune, choice.static_way
    if config is None:
        return Tuned(choice, bundle)
    if way is None:
        return _left_out(choice, bundle, "no static file is tried for this model")
    without = choice.made(way)
    if without.judgement is None:
        return _left_out(choice, bundle, f"{way.name}: {without.problem}")
    simulation = _simulation(choice, bundle, without)
    difference = differences(simulation, bundle, without.file, choice)
    if difference[1] > NEARER * difference[0]:
        found = f"{simulation.found} of {simulation.wanted} tensors found"
        return _left_out(choice, bundle, f"the model cannot be rounded as its file rounds ({found})")
    start = {name: value.detach().cpu().clone() for name, value in bundle.model.state_dict().items()}
    teacher = context.baseline().model if config.needs_teacher else None
    with named_after(SECTION, config), simulation.of(bundle.model):
        train(bundle, config, context, "training for integers", teacher, choice.images.learnt)
    folder = choice.folder / "tuned"
    folder.mkdir()
    apart = replace(context, details={})  # the file may be given up, and what was said of it with it
    trained = exported(measured(bundle, context), context.recipe.section("export"), folder / "tuned.onnx", apart)
    source = FloatFile.prepare(folder / "tuned.onnx", folder, weights_of(bundle))
    after = choice.of_other_weights(source, folder)
    learnt = after.made(way)
    if learnt.judgement is None:
        restore(bundle.model, start)
        return _left_out(choice, bundle, f"{way.name} of the trained weights: {learnt.problem}")
    main = choice.task.main_metric
    judged = [main.of(each.metrics) for each in (choice.before, without.judgement, learnt.judgement)]
    details = {
        "way": way.name,
        "kept": main.better(judged[2], judged[1]),
        "rounded": [simulation.found, simulation.wanted],
        "difference": list(difference),
        "judged": {"images": choice.images.judged.num_samples, **_named(judged)},
        "test": _on_test([choice.source.path, without.file, learnt.file], context),
    }
    sentence = _sentence(details, choice)
    say(sentence)
    if details["kept"]:
        return Tuned(after, trained, details, sentence, start)
    restore(bundle.model, start)
    return Tuned(choice, bundle, details, sentence)


def _left_out(choice: Choice, bundle: Bundle, reason: str) -> Tuned:
    sentence = f"{SECTION} is left out: {reason}"
    say(sentence)
    return Tuned(choice, bundle, None, sentence)


def weights_of(bundle: Bundle) -> dict[str, Any]:
    """Return the model's weights as arrays, by name."""
    return {name: value.detach().cpu().numpy() for name, value in bundle.model.named_parameters()}


def _simulation(choice: Choice, bundle: Bundle, without: Candidate) -> Simulation:
    batch = next(iter(choice.images.few.batches())).part(0, APART)
    return simulate(bundle.model, roundings_of(without.file, without.way, choice.source), choice.source, batch)


@torch.no_grad()
def differences(simulation: Simulation, bundle: Bundle, file: Path, choice: Choice) -> tuple[float, float]:
    """Return how far the float module and the rounded one are from the file: mean squares over the file's own."""
    model, task = bundle.model, choice.task
    batch = next(iter(choice.images.few.batches()))
    wanted = task.tensor(task.forward(OnnxModel(file, task), batch)).double()
    with evaluating(model):
        floats = _outputs(model, batch, task)
        with simulation.of(model):
            rounded = _outputs(model, batch, task)
    size = wanted.square().mean().clamp_min(1e-30)
    apart = [((each - wanted).square().mean() / size).item() for each in (floats, rounded)]
    return apart[0], apart[1]


def _outputs(model: Any, batch: Any, task: Task) -> Tensor:
    return task.tensor(task.forward(model, batch.to("cpu", copy=True))).double()


def _named(figures: list[float]) -> dict[str, float]:
    return dict(zip(("floats", "without", "with"), figures, strict=True))


def _on_test(files: list[Path], context: Context) -> dict[str, float] | None:
    """Return the main metric of the files on the test images, which nothing was chosen by."""
    data = context.data
    if data is None or data.test is None:
        return None
    figures = [data.task.main_metric.of(judge(file, data.test, data.task).metrics) for file in files]
    return {"images": data.test.num_samples, **_named(figures)}


def _sentence(details: dict[str, Any], choice: Choice) -> str:
    main = choice.task.main_metric

    def listed(found: dict[str, Any]) -> str:
        floats, without, trained = (main.show(found[key]) for key in ("floats", "without", "with"))
        return f"{floats} in floats, {without} in integers, {trained} in integers after training for them"

    judged, test = details["judged"], details["test"]
    text = f"{main.label} on {judged['images']} held-out training images: {listed(judged)}"
    if test is not None:
        text += f"; on {test['images']} test images: {listed(test)}"
    return f"{text}: {'the trained weights are taken' if details['kept'] else 'the weights from before are taken'}"
