"""Learning from a teacher as a training step, however a recipe asks for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from tiny_training import equal, tiny_data, tiny_model
from torch import nn
from typer.testing import CliRunner

from compress.bundle import Bundle
from compress.cli import app
from compress.core.errors import InputError
from compress.distill.distilled import DistilledConfig
from compress.distill.finetune import FinetuneConfig
from compress.distill.losses.kd import KdConfig
from compress.runs.recipe import load_recipe
from compress.training.config import TrainConfig
from compress.training.fit import fit
from compress.training.supervised import SupervisedConfig
from evaluators.datasets import Preprocessing
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from spaces.zoo import ModelConfig, build_model

KD = {"loss": "kd", "temperature": 2.0}


def recovered(config: TrainConfig, teacher: nn.Module | None = None) -> nn.Module:
    model = tiny_model()
    fit(model, tiny_data(), config, teacher=teacher)
    return model


def test_the_section_distill_is_short_for_the_step() -> None:
    teacher, untouched = tiny_model(), tiny_model()
    nn.init.zeros_(teacher[-1].weight)
    nn.init.zeros_(untouched[-1].weight)
    short = FinetuneConfig(epochs=1, distill=KD)
    long = FinetuneConfig(epochs=1, step={"name": "distilled", "loss": KD})
    assert short.needs_teacher
    assert long.needs_teacher
    assert equal(recovered(short, teacher), recovered(long, teacher))
    assert equal(teacher, untouched)
    assert not equal(recovered(short, teacher), recovered(FinetuneConfig(epochs=1)))


def test_it_is_told_how_good_a_teacher_is_unless_it_gives_something_else() -> None:
    data, told = tiny_data(), list[str]()
    teacher = tiny_model()
    good = evaluate(teacher, data.train, data.task)["top1"]
    fit(tiny_model(), data, FinetuneConfig(epochs=1, distill=KD), teacher=teacher, tell=told.append)
    assert told == [f"teacher dense: top-1 {good:.2f} % on {data.train.num_samples} training samples"]
    other = nn.Sequential(*list(tiny_model())[:-1], nn.Linear(teacher[-1].in_features, 7))
    layer = {"loss": "feature", "layers": {"1": "1"}}
    fit(tiny_model(), data, FinetuneConfig(epochs=1, distill=layer), teacher=other, tell=told.append)
    assert len(told) == 1


def test_the_step_is_supervised_where_nothing_is_said() -> None:
    assert TrainConfig().step_config == FinetuneConfig().step_config == SupervisedConfig()
    assert FinetuneConfig(step={"name": "distilled"}).step_config == DistilledConfig()
    with pytest.raises(ValidationError, match="distill adds to step supervised; got step distilled"):
        FinetuneConfig(distill=KD, step={"name": "distilled"})


def test_a_step_that_needs_a_teacher_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match=r"train\.step: there is no other model yet.*got distilled"):
        load_recipe("dimap_swin.yaml", {"train.step": {"name": "distilled"}})
    search = {"search.evaluator.train.step": {"name": "distilled"}}
    with pytest.raises(InputError, match=r"search\.evaluator\.train\.step: there is no other model yet"):
        load_recipe("search_digits_nasnet_rl.yaml", search)
    with pytest.raises(InputError, match="step distilled needs a teacher"):
        recovered(FinetuneConfig(epochs=1, distill=KD))


def test_the_section_distill_trains_by_any_teachers(tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "name": "taught",
        "model": {"source": "builtin", "name": "cifar_resnet20"},
        "data": {"name": "digits", "image_size": 8, "limit_train": 64, "limit_test": 32, "batch_size": 32},
        "prune": {"kind": "structure", "budget": {"macs": 0.6}},
        "distill": {
            "loss": [KD, {"loss": "kd", "weight": 0.3}],
            "teachers": {"dense": {}, "big": {"model": {"name": "resnet10t"}, "untrained": True}},
            "epochs": 1,
        },
    }
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(recipe))
    command = ["distill", "--recipe", str(tmp_path / "taught.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["dense", "prune", "distill"]
    assert report["final"]["top1"] is not None and report["final"]["macs"] < 0.62 * report["baseline"]["macs"]
    wrong = CliRunner().invoke(app, [*command, "--set", "distill.teachers.big.weight=0"])
    assert wrong.exit_code == 2
    assert "distill.teachers.big.weight: out of range" in wrong.stderr


def classes(count: int, folder: Path) -> str:
    """Write a bundle of a model for digits, 8x8, that knows `count` classes; return where."""
    built = build_model(ModelConfig(source="builtin", name="cifar_resnet20"), DEFAULT.bind(count, (1, 8, 8)))
    Bundle(built.module, built.config, built.task, Preprocessing((1, 8, 8), (0.5,), (0.5,))).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            {"finetune": {"distill": KD, "teachers": {"big": {"model": {"source": "bundle", "name": "five"}}}}},
            r"teachers\.big: the teacher gives 5 classes, the model 10",
        ),
        (
            {"distill": {"loss": {"loss": "feature", "layers": {"layer9*": "layer1"}}}},
            r"distill\.loss\.layers: no layer of the model matches 'layer9\*'",
        ),
        ({"distill": {"loss": {"loss": "dkd"}, "cutmix": 1.0}}, r"distill\.loss: dkd needs the right class"),
    ],
    ids=["classes", "layers", "mixed"],
)
def test_what_cannot_be_learnt_is_refused_before_the_model_is_trained(
    section: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "version": 1,
        "name": "refused",
        "model": {"source": "builtin", "name": "cifar_resnet20"},
        "data": {"name": "digits", "image_size": 8, "limit_train": 64, "limit_test": 32, "batch_size": 32},
        "train": {"epochs": 100_000},
        "prune": {"kind": "structure", "budget": {"macs": 0.6}},
    }
    monkeypatch.chdir(tmp_path)
    classes(5, tmp_path / "five")
    (tmp_path / "refused.yaml").write_text(yaml.safe_dump(recipe | section))
    done = CliRunner().invoke(app, ["run", "--recipe", "refused.yaml", "--quiet"])
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert re.search(sentence, done.stderr), done.stderr
    assert not (tmp_path / "runs" / "refused").exists()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"distill": {"loss": {"loss": "feature", "layers": {"a3": "a3"}}}}, "8  distill.loss.layers: no layer of"),
        ({"distill": {"loss": [KD, {"loss": "feature", "layers": {"a3": "a3"}}]}}, "distill.loss.1.layers: no layer"),
        (
            {"finetune": {"distill": {"loss": "guidance", "teacher": "u"}}},
            "8  finetune.distill.teacher: unknown",
        ),
        ({"finetune": {"distill": {"loss": "dkd"}, "mixup": 0.2}}, "8  finetune.distill: dkd needs the right class"),
        ({"finetune": {"step": {"name": "path_ensemble"}}}, "8  finetune.step: path_ensemble: "),
    ],
)
def test_what_is_wrong_with_a_loss_is_told_at_its_key(section: dict[str, object], says: str, tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "name": "taught",
        "model": {"source": "builtin", "name": "cifar_resnet20"},
        "data": {"name": "digits", "image_size": 8, "limit_train": 64, "limit_test": 32, "batch_size": 32},
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in recipe.items()]
    (name, content), *_ = section.items()
    text = "\n".join(["# first line", *lines, "train: {epochs: 100000}", "", f"{name}: {json.dumps(content)}"])
    (tmp_path / "taught.yaml").write_text(text)
    done = CliRunner().invoke(app, ["run", "--recipe", str(tmp_path / "taught.yaml"), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert says in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (
            lambda student, teacher: (student - teacher).square(),
            r"gives a tensor \(\d+, \d+\); allowed: a tensor of one",
        ),
        (lambda student, teacher: None, "gives NoneType; allowed"),
        (lambda student, teacher: student.detach().mean(), "has no gradient, so nothing would be learned from it"),
    ],
)
def test_a_loss_that_is_no_number_or_teaches_nothing_is_refused(monkeypatch: Any, term: Any, says: str) -> None:
    monkeypatch.setattr(KdConfig, "term", lambda self, student, teacher: term(student, teacher))
    with pytest.raises(InputError, match=f"loss: it {says}"):
        recovered(FinetuneConfig(epochs=1, distill=KD), tiny_model())
