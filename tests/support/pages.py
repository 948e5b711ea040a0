"""Commands as they stand on a page or in a recipe's first lines, and what makes a recipe run in seconds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from compress.runs.catalog import find_recipe, listing

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNS = ("prune", "distill", "sort", "quantize", "search", "run")
"""Commands that run a recipe."""
TAKES_RECIPE = (*RUNS, "rank", "cache-teacher")
"""Commands that do something of it."""

_TIMING = ["latency.runs=3", "latency.seconds=0", "latency.max_seconds=0.5"]
_SETTLED = ["latency.max_seconds=2"]  # what a pruning goes by: the less it varies, the fewer networks are tried
_BRIEF = [*_TIMING, "export.exporter=torchscript"]  # the other exporter takes ten seconds a model
_FEW = ["data.limit_train=200", "data.limit_test=100"]
_FEWEST = ["data.limit_train=64", "data.limit_test=40"]
_RESNET20 = ["model.name=cifar_resnet20", "model.checkpoint=resnet20.safetensors"]
_SHORT = ["train.epochs=1", "train.warmup_epochs=0", "finetune.epochs=1", "finetune.warmup_epochs=0"]
_TRAINED = ["train.epochs=2", "train.warmup_epochs=0"]
_PATHS = [*_FEW, "supernet.epochs=1", "search.evaluator.recalibrate=2", "train.epochs=1"]
_FLOATS = ["train.precision='32'"]  # bfloat16 is slow on processors that lack it
_SCENES = ["data.samples=48", "data.test_samples=24"]
_CANDIDATES = ["search.evaluator.train.epochs=1", "train.epochs=1"]
_NETADAPT = [
    "search.strategy.target=0.99",
    "search.evaluator.steps=1",
    "search.evaluator.seed_train.epochs=1",
    "train.epochs=1",
]
_PLACEMENTS = [
    *_FEWEST,
    "data.batch_size=16",
    "supernet.epochs=1",
    "supernet.method.models=2",
    "search.evaluator.recalibrate=1",
    "train.epochs=1",
]
_CELLS = [
    "data.limit_train=32",
    "data.limit_test=50",
    "data.batch_size=16",
    "supernet.space.options={channels: 2, layers: 3}",
    "supernet.found_options={channels: 2, norm: affine}",
    "supernet.epochs=1",
    "supernet.precision='32'",
    "train.epochs=1",
]
_FEW_VIEWS = [
    "data.limit_train=24", "data.limit_test=20", "data.batch_size=8",
    "supernet.method.hidden=64", "supernet.epochs=1", "supernet.warmup_epochs=0", "train.epochs=1",
]  # fmt: skip
_LATENCIES = ["search.latency.measure.seconds=0", "search.latency.measure.max_seconds=0.2"]
_EDGES = ["search.space.options={cells: 1, channels: 4}", "search.evaluator.recalibrate=1"]
_NESTED = [
    "train.epochs=1",
    "train.warmup_epochs=0",
    "sort.epochs=1",
    "sort.members=3",
    "sort.timed=2",
    "sort.bn_recalibrate=2",
]
_WHOLE_WAY = [
    *_SHORT, *_LATENCIES, "data.image_size=16", "supernet.epochs=1", "sort.epochs=1", "sort.members=3", "sort.timed=2",
    "quantize.calibration=32",
]  # fmt: skip
QUICKER: dict[str, list[str]] = {
    "bms_pooling_cifar10": [*_BRIEF, *_FLOATS, *_PLACEMENTS, "search.trials=6"],
    "bms_pooling_digits": [*_BRIEF, *_PLACEMENTS],
    "bossnas_hytra_cifar10": [*_BRIEF, *_FLOATS, *_FEW_VIEWS, "data.image_size=16"],
    "bossnas_hytra_digits": [*_BRIEF, *_FEW_VIEWS],
    "bossnas_nats_cifar10": [*_BRIEF, *_FLOATS, *_FEW_VIEWS, "data.image_size=8", "search.trials=60"],
    "bossnas_nats_digits": [*_BRIEF, *_FEW_VIEWS],
    "darts_cifar10": [*_BRIEF, *_CELLS],
    "darts_digits": [*_BRIEF, "data.limit_train=128", "data.limit_test=40", "supernet.epochs=2", "train.epochs=1"],
    "denoise_digits": [*_BRIEF, *_SHORT, "data.limit_train=256", "data.limit_test=64"],
    "dimap_swin": [*_BRIEF, *_FEW, *_SHORT],
    "dimap_swin_channels": [*_BRIEF, *_FEW, *_SHORT],
    "embed_digits": [*_BRIEF, *_FEW, *_SHORT],
    "meal_v2_cifar10": [*_BRIEF, *_FEWEST, "distill.epochs=1", "distill.decay_epochs=[1]"],
    "meal_v2_digits": [*_BRIEF, *_FEW, *_TRAINED, "distill.epochs=2", "distill.decay_epochs=[1]"],
    "ladder_swin_cifar10": [
        *_BRIEF,
        *_FLOATS,
        *_FEWEST,
        *_SHORT,
        "finetune.precision='32'",
        "model.kwargs.depths=[1, 1, 2]",
        "model.kwargs.embed_dim=32",
    ],
    "ladder_swin_digits": [*_BRIEF, *_FEW, *_SHORT],
    "n2n_resnet18_cifar10": [
        *_BRIEF,
        *_FEW,
        *_CANDIDATES,
        "search.evaluator.teacher_train.epochs=1",
        "model={source: builtin, name: cifar_resnet20}",
        "search.trials=2",
    ],
    "n2n_resnet18_digits": [
        *_BRIEF,
        *_FEW,
        "data.image_size=16",
        "search.evaluator.train.epochs=1",
        "search.evaluator.teacher_train.epochs=1",
    ],
    "feature_kd_swin_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_SHORT,
        "model.kwargs.depths=[1, 1, 1]",
        "model.kwargs.embed_dim=32",
    ],
    "feature_kd_swin_digits": [*_BRIEF, *_FEW, *_SHORT],
    "guidance_mlp_cifar10": [*_BRIEF, *_FEWEST, "distill.epochs=1"],
    "guidance_mlp_digits": [*_BRIEF, *_FEW, "distill.epochs=2", "distill.evaluate_every=1"],
    "netadapt_digits": [*_BRIEF, *_FEWEST, *_NETADAPT],
    "path_ensemble_vit_cifar10": [
        *_BRIEF,
        *_FLOATS,
        *_FEWEST,
        *_SHORT,
        "model.kwargs.depth=3",
        "model.kwargs.embed_dim=48",
    ],
    "path_ensemble_vit_digits": [*_BRIEF, *_FEW, *_SHORT],
    "phc_resnet_digits": [*_BRIEF, *_FEW, *_SHORT],
    "prune_segmentation_digits": [
        *_TIMING,
        "data.image_size=32",
        "data.samples=64",
        "data.test_samples=32",
        "train.epochs=1",
        "finetune.epochs=1",
    ],
    "full_pipeline": [*_BRIEF, *_FEWEST, *_WHOLE_WAY, "prune.budget={macs: 0.6}"],
    "full_pipeline_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_WHOLE_WAY,
        "search.space.options.strides=[2, 1, 1, 2, 2]",
        "search.strategy.initial=2",
        "search.trials=4",
        "prune.budget={macs: 0.8}",
        "references.networks=[mobilenetv3_small_050]",
    ],
    "latency_resnet56_cifar10": [
        *_BRIEF,
        *_SETTLED,
        *_FEWEST,
        *_RESNET20,
        "prune.budgets=[{latency: 0.667}, {latency: 0.5}]",
    ],
    "latency_resnet_digits": [
        *_TIMING,
        *_SETTLED,
        *_FEW,
        *_SHORT,
        "model.kwargs={options: {depth: 8}, arch: 16/16-16/32-32/64-64}",
    ],
    "prune_detection_digits": [*_TIMING, *_SHORT, *_SCENES],
    "search_detector_digits": [*_TIMING, *_CANDIDATES, *_LATENCIES, *_SCENES],
    "quantize_cifar10": [*_BRIEF, *_FEWEST, *_RESNET20, "quantize.calibration=32"],
    "quantize_digits": [*_TIMING, "data.limit_test=100", "train.epochs=1", "quantize.judged=100"],
    "resnet56_cifar10": [*_BRIEF, *_FEWEST, *_RESNET20, "finetune.epochs=1", "finetune.precision='32'"],
    "resnet_digits": [*_FEW, *_TRAINED],
    "search_digits_mobilenetv3": [*_BRIEF, *_FEWEST, *_CANDIDATES, *_LATENCIES],
    "search_digits_nasnet_rl": [
        *_BRIEF,
        "data.limit_train=40",
        "data.limit_test=20",
        "search.space.options={filters: 4}",
        "train.epochs=1",
    ],
    "search_nats_table": [],
    "search_pooling_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_CANDIDATES,
        "data.image_size=16",
        *_FLOATS,
        "search.evaluator.train.precision='32'",
        "search.trials=7",
    ],
    "spos_mobilenetv3_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_LATENCIES,
        "supernet.epochs=1",
        "search.strategy.initial=2",
        "search.trials=4",
        "search.evaluator.recalibrate=2",
        "train.epochs=1",
    ],
    "spos_mobilenetv3_digits": [*_BRIEF, *_PATHS],
    "tas_resnet56_cifar10": [*_BRIEF, *_FEWEST, "supernet.epochs=1", "train.epochs=1", "train.warmup_epochs=0"],
    "tas_resnet_digits": [*_BRIEF, *_FEW, *_TRAINED, "supernet.epochs=2"],
    "spos_nas_bench_201_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_EDGES,
        "supernet.epochs=1",
        "search.trials=40",
        "rank.architectures=8",
        "train.epochs=1",
    ],
    "spos_nas_bench_201_digits": [*_BRIEF, *_PATHS],
    "sortednet_mobilenetv3_cifar10": [*_BRIEF, *_FEWEST, *_NESTED],
    "sortednet_mobilenetv3_digits": [*_TIMING, *_NESTED],
    "sortednet_vit_cifar10": [
        *_BRIEF,
        *_FEWEST,
        "data.batch_size=16",
        "model.kwargs.depth=3",
        "model.kwargs.embed_dim=96",
        *_NESTED,
    ],
    "sortednet_vit_digits": [*_TIMING, *_NESTED],
    "search_ray": [*_BRIEF, *_FEWEST, "search.evaluator.train.epochs=2", "train.epochs=1"],
}
"""By a recipe's name, keys that leave all its stages as they are, and all its trials, but make each of them short.

Those that want images of CIFAR-10, which have a twin on digits, make fewer trials.
"""


def blocks(page: str, language: str) -> list[str]:
    """Return the contents of a page's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the lines of a page's blocks of shell, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def _words(command: str) -> list[str]:
    """Return the words of a command, with the flag before a recipe that comes first."""
    words = shlex.split(command)
    bare = words[0] == "compress" and words[1] in (*TAKES_RECIPE, "plan") and not words[2].startswith("-")
    return [*words[:2], "--recipe", *words[2:]] if bare else words


def shipped(command: str) -> str | None:
    """Return the recipe that a command runs, if it is a shipped one."""
    words = _words(command)
    if words[0] != "compress" or words[1] not in RUNS or "--recipe" not in words:
        return None
    recipe = words[words.index("--recipe") + 1]
    return recipe if recipe in listing("recipes") else None


def of_recipe(recipe: str) -> list[str]:
    """Return the commands in the comments of a shipped recipe, each once."""
    text = find_recipe(recipe).read_text(encoding="utf-8").replace("\\\n#", "")
    return list(dict.fromkeys(re.findall(r"^#   (compress .*)$", text, re.MULTILINE)))


def quicker(command: str, folder: Path) -> list[str]:
    """Return the arguments of a `compress` command, with flags that make it short."""
    words = _words(command)[1:]
    if words[0] == "latency-table":
        return [*words, "--networks", "10", "--check", "5", "--seconds", "0"]  # the last of equal flags counts
    if words[0] == "inspect" and "--latency" in words:
        return [*words, "--set", "latency.seconds=0", "--set", "latency.max_seconds=2"]
    if words[0] in TAKES_RECIPE:
        recipe = words[words.index("--recipe") + 1]
        file = folder / recipe if (folder / recipe).is_file() else find_recipe(recipe)
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        flags = QUICKER[content["name"]] if content["name"] in QUICKER else _of_page(content)
        return [*words, *(word for flag in flags for word in ("--set", flag))]
    return words


def _of_page(content: dict[str, Any]) -> list[str]:
    """Return what makes a recipe short that stands on a page: an epoch of each training, on few of the digits."""
    digits = content["data"].get("name") == "digits"
    flags = [*_BRIEF, "sort.timed=2", *(f"{name}.epochs=1" for name in ("train", "finetune", "sort", "supernet"))]
    flags += ["data.limit_train=300", "data.limit_test=100"] if digits else []
    flags += ["data.workers=0"] if content["data"].get("name") == "imagefolder" else []
    flags += ["search.evaluator.train.epochs=1"] if "train" in content.get("search", {}).get("evaluator", {}) else []
    flags += _SETTLED if "latency" in str(content.get("prune")) else []
    return [flag for flag in flags if flag.partition(".")[0] in content]


def overrides(name: str) -> dict[str, object]:
    """Return what `quicker` adds, for Python."""
    return {key: yaml.safe_load(value) for key, value in (flag.split("=", 1) for flag in QUICKER[name])}
