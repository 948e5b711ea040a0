"""Which section works with which task, as docs/tasks.md has it: what does not is refused when the recipe is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.core.errors import InputError
from compress.runs.pipeline import run
from compress.runs.recipe import load_recipe

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"
DATA = {
    "classification": "digits", "segmentation": "digits_segmentation", "detection": "digits_detection",
    "regression": "digits_denoising", "embedding": "digits", "none": "digits",
}  # fmt: skip
MODEL: dict[str, Any] = {"source": "python", "name": "torch.nn:Identity"}  # is not built
RATIO = {"kind": "structure", "ratio": 0.5}
SUPERNET: dict[str, Any] = {"epochs": 1, "space": {"name": "nas_bench_201"}}
SEARCH = {
    "space": {"name": "nas_bench_201"}, "strategy": {"name": "random"},
    "evaluator": {"kind": "train", "train": {"epochs": 1}},
}  # fmt: skip
SECTIONS: dict[str, list[dict[str, Any]]] = {
    "train": [{"train": {"epochs": 1}}],
    "prune: by weights": [{"prune": {**RATIO, "criterion": name}} for name in ("dimap", "magnitude", "obs")],
    "prune: criterion taylor": [{"prune": {**RATIO, "criterion": "taylor"}}],
    "prune: criterion hessian": [{"prune": {**RATIO, "criterion": "hessian"}}],
    "prune: a budget of latency": [{"prune": {"kind": "structure", "budget": {"latency": 0.5}}}],
    "distill: kd": [{"distill": {"loss": {"loss": "kd"}}}],
    "distill: dkd": [{"distill": {"loss": {"loss": name}}} for name in ("dkd", "meal_v2")],
    "distill: logits": [{"distill": {"loss": {"loss": name}}} for name in ("logits", "cosine")],
    "distill: feature": [{"distill": {"loss": {"loss": "feature", "layers": {"a": "b"}}}}],
    "sort": [{"sort": {"epochs": 1}}],
    "supernet: single_path": [{"supernet": {**SUPERNET, "method": "single_path"}}],
    "supernet: balanced_mixture": [{"supernet": {**SUPERNET, "method": "balanced_mixture"}}],
    "search": [{"search": SEARCH}],
    "quantize": [{"quantize": {"max_drop": 1.0}, "export": {}}],
}


def table() -> dict[str, dict[str, str]]:
    """The page's second table, by the beginning of each first cell."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").partition("| section |")[2].splitlines()
        if line.startswith("|")
    ]
    names = list(DATA)
    cells = {row[0].replace("`", ""): dict(zip(names, row[1:], strict=True)) for row in rows if "---" not in row[0]}
    return {next(name for name in sorted(SECTIONS, key=len, reverse=True) if key.startswith(name)): value
            for key, value in cells.items() if key.partition(" |")[0] not in names}  # fmt: skip


def read(sections: dict[str, Any], folder: Path) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "name": "tried", **sections}), encoding="utf-8")
    return load_recipe(path)


def test_the_page_names_every_section_that_is_tried() -> None:
    found = table()
    assert set(found) == set(SECTIONS) and all(set(row.values()) <= {"yes", "no"} for row in found.values())


@pytest.mark.parametrize("task", DATA)
def test_what_the_page_says_works_is_taken_and_what_not_is_refused(task: str, tmp_path: Path) -> None:
    for section, row in table().items():
        for given in SECTIONS[section]:
            whole = {"model": MODEL, "data": {"name": DATA[task]}, "task": {"name": task}, **given}
            if row[task] == "yes":
                read(whole, tmp_path)
                continue
            with pytest.raises(InputError) as caught:
                read(whole, tmp_path)
            (key,) = given.keys() - {"export"}
            told = caught.value.problems
            assert all(re.search(rf"{key}\b", each) and f"task {task}" in each for each in told), (section, told)


SHORT = {"epochs": 1, "warmup_epochs": 0}
SMALL = {"limit_train": 96, "limit_test": 24, "batch_size": 24}
SORT = {
    **SHORT, "widths": [0.5, 1.0], "members": "diagonal", "sampling": {"kind": "sandwich"},
    "distill": {"loss": "logits"}, "bn_recalibrate": 1,
}  # fmt: skip
FILE = {"export": {"exporter": "torchscript"}, "quantize": {"method": "static", "calibration": 12, "max_drop": 9.0}}

FEATURE = {"loss": "feature", "layers": {"layers.1": "layers.1"}}
SANDWICH = {"kind": "sandwich", "between": 0, "distill": {"loss": "cosine"}}


def pruned(criterion: str) -> dict[str, Any]:
    return {"kind": "structure", "criterion": criterion, "budget": {"macs": 0.6}, "align": 1}


RUNS: dict[str, dict[str, Any]] = {
    "regression": {
        "model": {"source": "builtin", "name": "dncnn", "kwargs": {"depth": 4, "width": 8}},
        "data": {"name": "digits_denoising", "image_size": 16, **SMALL},
        "task": {"name": "regression", "loss": "charbonnier"},
        "train": {**SHORT, "keep": "best"},
        "prune": pruned("taylor"),
        "finetune": {**SHORT, "distill": [{"loss": "logits", "weight": 0.5}, FEATURE]},
        "sort": SORT,
        **FILE,
    },
    "embedding": {
        "model": {"source": "builtin", "name": "mlp", "kwargs": {"widths": [32, 32]}},
        "data": {"name": "digits", "image_size": 8, "channels": 1, **SMALL},
        "task": {"name": "embedding", "width": 8},
        "train": {**SHORT, "keep": "best"},
        "prune": pruned("hessian"),
        "finetune": {**SHORT, "distill": {"loss": "cosine", "weight": 0.5}},
        "sort": SORT,
        **FILE,
    },
    "search": {
        "data": {"name": "digits", "image_size": 8, **SMALL},
        "task": {"name": "embedding"},
        "supernet": {**SHORT, "method": {"name": "single_path", "paths": SANDWICH}},
        "search": {
            "space": {"name": "nats_size"}, "strategy": {"name": "random"}, "trials": 2,
            "evaluator": {"kind": "supernet", "recalibrate": 1},
        },
        "train": SHORT,
    },
    "none": {
        "model": {"source": "builtin", "name": "cifar_resnet20"},
        "data": {"name": "digits", "image_size": 8, **SMALL},
        "task": {"name": "none"},
        "prune": pruned("obs"),
        "export": {"exporter": "torchscript"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_small_versions_of_what_works_run_to_their_end(name: str, tmp_path: Path) -> None:
    recipe = read(RUNS[name], tmp_path)
    report = run(recipe, out=tmp_path / "run", device="cpu").report
    main = recipe.task.main_metric if recipe.task.metrics else None
    told = {"name": recipe.task.name, "main_metric": main and main.name, "direction": main and main.direction}
    assert report["task"] == told and "top1" not in report["final"]
    assert main is None or report["final"][main.name] is not None
    if name != "search":
        assert report["final"]["macs"] < 0.7 * report["baseline"]["macs"]


def test_a_space_of_classifiers_is_refused_for_images_before_it_is_trained(tmp_path: Path) -> None:
    whole = {**RUNS["search"], "data": RUNS["regression"]["data"], "task": {"name": "regression"}}
    whole["supernet"] = {**SHORT, "method": "single_path"}
    with pytest.raises(
        InputError, match=r"task: networks of the space nats_size are not for task regression: .* shape"
    ):
        run(read(whole, tmp_path), out=tmp_path / "run", device="cpu")
    assert not list((tmp_path / "run").rglob("checkpoint*"))
