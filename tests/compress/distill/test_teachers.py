"""Teachers of any source, several of them, sums of losses, and losses that look at layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny_training import equal, tiny_data, tiny_model
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.distill.distilled import DistilledConfig
from compress.distill.finetune import FinetuneConfig
from compress.distill.layers import Seen, Watched, layers_named
from compress.distill.losses import DistillLoss, LossConfig, Sides
from compress.distill.losses.kd import KdConfig, kd_loss
from compress.distill.teachers import Adapter, TeacherConfig, opened
from compress.testing.losses import check_loss
from compress.training.fit import fit
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.datasets.preprocessing import Preprocessing
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig, build_model

TASK = DEFAULT.bind(4, (3, 8, 8))


class Projected(LossConfig):
    """A loss of layers with a projector."""

    loss: Literal["projected"] = "projected"

    def make(self, sides: Sides) -> DistillLoss:
        return ProjectedLoss(sides)


class ProjectedLoss(DistillLoss):
    def __init__(self, sides: Sides) -> None:
        super().__init__()
        guide = sides.guide(None, "distill.teacher")
        assert guide.model is not None
        self.student_layers, self.teacher_layers = ["0"], {guide.name: ["0"]}
        wide = [sides.look(model, ["0"]).features["0"].shape[1] for model in (sides.student, guide.model)]
        self.projector, self.guide = nn.Conv2d(*wide, 1), guide.name

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        return (self.projector(student.features["0"]) - teachers[self.guide].features["0"]).square().mean()


def convolutional(seed: int, width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * width, 4))


def updater(config: FinetuneConfig, model: nn.Module, teacher: nn.Module | None = None) -> Updater:
    step = config.make_step(StepContext(config, tiny_data(), teacher), seed=0)
    return Updater(model, step, config, device="cpu", seed=0, batches=6)


def distilled(*losses: LossConfig) -> FinetuneConfig:
    """Return settings with losses that are not registered."""
    step = DistilledConfig.model_construct(name="distilled", loss=list(losses), teachers={})
    return FinetuneConfig(epochs=1).model_copy(update={"step": step})


def batch() -> Batch:
    images, labels = tiny_data().train.images[:6], tiny_data().train.labels[:6]
    return Batch(images, labels)


def test_losses_add_up_and_labels_get_the_least_share_that_is_left() -> None:
    model, teacher = convolutional(0), convolutional(1)
    logits, guidance = model(batch().inputs).detach(), teacher(batch().inputs).detach()
    it = updater(FinetuneConfig(distill=[{"temperature": 2, "weight": 0.7}, {"weight": 0.2}]), model, teacher)
    expected = 0.7 * kd_loss(logits, guidance, 2) + 0.2 * kd_loss(logits, guidance, 4)
    expected += 0.3 * F.cross_entropy(logits, batch().targets)
    assert float(it.update(batch(), 0)) == pytest.approx(float(expected), rel=1e-5)


def test_the_log_tells_every_term(tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=2, lr=1e-2, distill=[{"weight": 0.5}, {"weight": 0.25, "temperature": 2}])
    history = fit(convolutional(0), tiny_data(), config, teacher=convolutional(1)).history
    for event in history:
        parts = [event[name] for name in ("kd1_loss", "kd2_loss", "label_loss")]
        assert sum(parts) == pytest.approx(event["loss"], rel=1e-5)
    assert history[1]["kd1_loss"] < history[0]["kd1_loss"]
    alone = fit(convolutional(0), tiny_data(), FinetuneConfig(epochs=1, distill={"weight": 1.0}), teacher=tiny_model())
    assert (
        alone.history[0]["kd_loss"] == pytest.approx(alone.history[0]["loss"]) and "label_loss" not in alone.history[0]
    )


def test_no_label_is_read_where_none_of_the_loss_is_left_to_them() -> None:
    config = FinetuneConfig(distill={"weight": 1.0})
    losses = []
    for shift in (0, 1):
        given = batch()
        it = updater(config, convolutional(0), convolutional(1))
        losses.append(float(it.update(Batch(given.inputs, (given.targets + shift) % 4), 0)))
    assert losses[0] == losses[1]


def test_projectors_train_with_the_student_and_are_in_its_checkpoints(tmp_path: Path) -> None:
    model, teacher = convolutional(0), convolutional(1, width=12)
    it = updater(distilled(Projected(), KdConfig()), model, teacher)
    projector = it.step.terms[0].projector  # type: ignore[union-attr,index]
    before = projector.weight.detach().clone()
    assert projector.weight.shape == (12, 8, 1, 1)
    it.update(batch(), 0)
    assert not torch.equal(projector.weight, before)
    assert any(name.startswith("terms.0.projector") for name in it.state_dict()["step"])
    assert not [name for name in model.state_dict() if "projector" in name]
    check_loss(Projected())


def test_a_layer_that_a_relu_overwrites_is_seen_as_it_was() -> None:
    model = convolutional(0)
    watched, images = Watched(model, ["0", "1"], TASK), batch().inputs
    wanted = model[0](images)  # type: ignore[index]
    assert bool((wanted < 0).any())
    for _ in range(3):  # the first pass finds out, the others know
        seen = watched.see(lambda: model(images))
        assert torch.equal(seen.features["0"], wanted) and torch.equal(seen.received["0"], images)
        assert torch.equal(seen.received["1"], wanted) and torch.equal(seen.features["1"], wanted.relu())
    assert not model[0]._forward_hooks  # type: ignore[index]


class Residual(nn.Module):
    """Uses what a layer gives three times, so that three gradients add up there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        return (maps.sin() + maps.tanh() + 3 * maps).mean((2, 3))


def test_the_first_pass_has_the_gradients_of_the_others_bit_for_bit() -> None:
    model, gradients = Residual(), []
    watched = Watched(model, ["layer"], TASK)
    for _ in range(2):
        seen = watched.see(lambda: model(batch().inputs))
        loss = seen.tensor.square().mean() + seen.features["layer"].cos().mean()
        gradients.append(torch.autograd.grad(loss, model.layer.weight)[0])
    assert torch.equal(*gradients)


def test_layers_are_named_by_globs_that_match() -> None:
    assert layers_named(convolutional(0), ["[01]", "4"], "distill.layers", "the model") == ["0", "1", "4"]
    with pytest.raises(InputError, match=r"distill\.layers: no layer of teacher big matches 'layer9'"):
        layers_named(convolutional(0), ["0", "layer9"], "distill.layers", "teacher big")
    nested = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(1, 1)])})  # no pass goes through a list
    assert layers_named(nested, ["*"], "distill.layers", "the model") == ["parts.0"]
    model = tiny_model()
    model.spare = nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(InputError, match="layer spare takes no part in a pass"):
        Watched(model, ["spare"], TASK).see(lambda: model[:-1](batch().inputs))


def test_several_teachers_count_by_their_weights(tmp_path: Path) -> None:
    config = {"source": "builtin", "name": "cifar_resnet20"}
    built = [build_model(ModelConfig(**config), TASK, seed=seed).module for seed in (1, 2)]
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for module, file in zip(built, files, strict=True):
        save_file({name: each.contiguous() for name, each in module.state_dict().items()}, file)
    teachers = {
        name: {"model": config | {"checkpoint": str(file)}, "weight": weight}
        for name, file, weight in zip(("one", "other"), files, (3, 1), strict=True)
    }
    settings = FinetuneConfig(distill={"weight": 1.0}, teachers=teachers)
    assert not settings.needs_teacher
    assert FinetuneConfig.model_validate(settings.model_dump(mode="json")) == settings
    data = tiny_data()
    data.preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    step = settings.make_step(StepContext(settings, data), seed=0)
    it = Updater(convolutional(0), step, settings, device="cpu", seed=0, batches=6)
    logits = convolutional(0)(batch().inputs)
    one, other = (kd_loss(logits, module.eval()(batch().inputs).detach(), 4.0) for module in built)
    assert float(it.update(batch(), 0)) == pytest.approx(float((0.75 * one + 0.25 * other).detach()), rel=1e-4)


def test_a_teacher_sees_images_as_it_was_trained_on_them() -> None:
    ours = Preprocessing((1, 8, 8), (0.5,), (0.25,))
    theirs = Preprocessing((3, 16, 16), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    pixels = torch.rand(2, 1, 8, 8)
    seen = Adapter(ours, theirs)((pixels - 0.5) / 0.25)
    wide = F.interpolate(pixels.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True)
    wanted = (wide - torch.tensor(theirs.mean).view(3, 1, 1)) / torch.tensor(theirs.std).view(3, 1, 1)
    assert torch.allclose(seen, wanted, atol=1e-6)
    data: Any = SimpleNamespace(task=DEFAULT.bind(4, (1, 8, 8)), preprocessing=ours)
    model = {"name": "resnet10t", "input_size": (3, 32, 32)}
    teacher = opened("big", TeacherConfig(model=model, untrained=True), data)
    assert not teacher.training and next(iter(teacher.named_children()))[0] == "conv1"
    assert teacher((pixels - 0.5) / 0.25).shape == (2, 4)
    with pytest.raises(InputError, match=r"teachers\.big\.model: takes inputs of \(?5"):
        opened("big", TeacherConfig(model=model | {"input_size": (5, 32, 32)}, untrained=True), data)
    given = TeacherConfig(model=model, untrained=True, mean=(0.25,), std=(0.125,))
    other = opened("big", given, data)
    found = other((pixels - 0.5) / 0.25)
    other._forward_pre_hooks.clear()
    wide = F.interpolate(pixels.expand(-1, 3, -1, -1), (32, 32), mode="bicubic", antialias=True)
    assert torch.allclose(other((wide - 0.25) / 0.125), found, atol=1e-5)
    assert not torch.allclose(teacher((pixels - 0.5) / 0.25), found, atol=1e-3)
    with pytest.raises(InputError, match=r"teachers\.big\.std: got 2 values; allowed: 1 or 3"):
        opened("big", given.model_copy(update={"std": (0.5, 0.5)}), data)


def test_a_teacher_whose_file_has_another_classifier_is_no_teacher_of_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"source": "builtin", "name": "cifar_resnet20"}
    state = build_model(ModelConfig(**config), DEFAULT.bind(7, (3, 8, 8))).module.state_dict()
    save_file({name: each.contiguous() for name, each in state.items()}, tmp_path / "seven.safetensors")
    data, model = tiny_data(), config | {"checkpoint": str(tmp_path / "seven.safetensors")}
    data.preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match=r"teachers\.t\.model\.checkpoint: the classifier in .* is of other classes"):
        opened("t", TeacherConfig(model=model), data)
    opened("t", TeacherConfig(model=model, untrained=True), data)
    assert "teacher t: " in capsys.readouterr().err


def test_a_bundle_of_other_classes_guides_by_its_layers(tmp_path: Path) -> None:
    config, data = ModelConfig(source="builtin", name="cifar_resnet20"), tiny_data()
    data.preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    built = build_model(config, DEFAULT.bind(7, (3, 8, 8)))
    Bundle(built.module, built.config, built.task, data.preprocessing).save(tmp_path / "seven")
    teachers = {"t": TeacherConfig(model={"source": "bundle", "name": str(tmp_path / "seven")})}
    layers = {"loss": "feature", "layers": {"0": "layer1"}}
    fit(tiny_model(), data, FinetuneConfig(epochs=1, distill=layers, teachers=teachers))
    with pytest.raises(InputError, match=r"teachers\.t: .*7"):
        fit(tiny_model(), data, FinetuneConfig(epochs=1, distill={"loss": "kd"}, teachers=teachers))


def test_what_cannot_teach_is_refused() -> None:
    with pytest.raises(ValidationError, match="has no weights to teach with; give checkpoint"):
        TeacherConfig(model={"name": "resnet18"})
    TeacherConfig(model={"name": "resnet18"}, untrained=True)
    with pytest.raises(ValidationError, match=r"model\.name: timm has no model 'resnet81'"):
        TeacherConfig(model={"name": "resnet81"}, untrained=True)
    with pytest.raises(ValidationError, match="mean and std: give both or neither"):
        TeacherConfig(model={"name": "resnet18"}, untrained=True, mean=(0.5,))
    with pytest.raises(ValidationError, match="takes what the model takes"):
        TeacherConfig(mean=(0.5,), std=(0.5,))
    with pytest.raises(ValidationError, match="teachers: nothing is learnt from them without distill"):
        FinetuneConfig(teachers={"dense": {}})
    with pytest.raises(InputError, match=r"teachers\.dense: the teacher gives 5 classes, the model 4"):
        wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        fit(convolutional(0), tiny_data(), FinetuneConfig(epochs=1, distill=[{}, {}]), teacher=wide)
    assert equal(convolutional(0), convolutional(0))
