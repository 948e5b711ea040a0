"""Commands as they stand on a page or in a recipe's first lines, and what makes a recipe run in seconds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from compress.runs.catalog import find_recipe, listing

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNS = ("prune", "distill", "sort", "quantize", "search", "run")
"""Commands that run a recipe."""

_TIMING = ["latency.runs=3", "latency.seconds=0", "latency.max_seconds=2"]
_BRIEF = [*_TIMING, "export.exporter=torchscript"]  # the other exporter takes ten seconds a model
_FEW = ["data.limit_train=200", "data.limit_test=100"]
_FEWEST = ["data.limit_train=64", "data.limit_test=40"]
_RESNET20 = ["model.name=cifar_resnet20", "model.checkpoint=resnet20.safetensors"]
_SHORT = ["train.epochs=1", "train.warmup_epochs=0", "finetune.epochs=1", "finetune.warmup_epochs=0"]
_FLOATS = ["train.precision='32'"]  # bfloat16 is slow on processors that lack it
_SCENES = ["data.samples=48", "data.test_samples=24"]
_CANDIDATES = ["search.evaluator.train.epochs=1", "train.epochs=1"]
_NETADAPT = [
    "search.strategy.target=0.92",
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
    "search.trials=6",
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
    "data.limit_train=24", "data.limit_test=20", "data.batch_size=8", "data.image_size=16",
    "supernet.method.hidden=64", "supernet.epochs=1", "supernet.warmup_epochs=0", "train.epochs=1",
]  # fmt: skip
_LATENCIES = ["search.latency.measure.seconds=0", "search.latency.measure.max_seconds=1"]
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
    "bms_pooling_cifar10": [*_BRIEF, *_FLOATS, *_PLACEMENTS],
    "bms_pooling_digits": _BRIEF,
    "bossnas_hytra_cifar10": [*_BRIEF, *_FLOATS, *_FEW_VIEWS],
    "bossnas_hytra_digits": _BRIEF,
    "bossnas_nats_cifar10": [*_BRIEF, *_FLOATS, *_FEW_VIEWS, "search.trials=60"],
    "bossnas_nats_digits": _BRIEF,
    "darts_cifar10": [*_BRIEF, *_CELLS],
    "darts_digits": _BRIEF,
    "denoise_digits": [*_BRIEF, *_SHORT, "data.limit_train=256", "data.limit_test=64"],
    "dimap_swin": [*_BRIEF, *_FEW, *_SHORT],
    "dimap_swin_channels": [*_BRIEF, *_FEW, *_SHORT],
    "embed_digits": [*_BRIEF, *_FEW, *_SHORT],
    "meal_v2_cifar10": [*_BRIEF, *_FEWEST, "distill.epochs=1", "distill.decay_epochs=[1]"],
    "meal_v2_digits": _BRIEF,
    "ladder_swin_cifar10": [
        *_BRIEF,
        *_FLOATS,
        *_FEWEST,
        *_SHORT,
        "finetune.precision='32'",
        "model.kwargs.depths=[1, 1, 2]",
        "model.kwargs.embed_dim=32",
    ],
    "ladder_swin_digits": _BRIEF,
    "n2n_resnet18_cifar10": [
        *_BRIEF,
        *_FEW,
        *_CANDIDATES,
        "search.evaluator.teacher_train.epochs=1",
        "model={source: builtin, name: cifar_resnet20}",
        "search.trials=2",
    ],
    "n2n_resnet18_digits": _BRIEF,
    "feature_kd_swin_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_SHORT,
        "model.kwargs.depths=[1, 1, 1]",
        "model.kwargs.embed_dim=32",
    ],
    "feature_kd_swin_digits": _BRIEF,
    "guidance_mlp_cifar10": [*_BRIEF, *_FEWEST, "distill.epochs=1"],
    "guidance_mlp_digits": _BRIEF,
    "netadapt_digits": [*_BRIEF, *_FEWEST, *_NETADAPT],
    "path_ensemble_vit_cifar10": [
        *_BRIEF,
        *_FLOATS,
        *_FEWEST,
        *_SHORT,
        "model.kwargs.depth=3",
        "model.kwargs.embed_dim=48",
    ],
    "path_ensemble_vit_digits": _BRIEF,
    "phc_resnet_digits": _BRIEF,
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
    "latency_resnet56_cifar10": [*_BRIEF, *_FEWEST, *_RESNET20, "prune.budgets=[{latency: 0.667}, {latency: 0.5}]"],
    "latency_resnet_digits": [*_TIMING, *_FEW, "train.epochs=1"],
    "prune_detection_digits": [*_TIMING, *_SHORT, *_SCENES],
    "search_detector_digits": [*_TIMING, *_CANDIDATES, *_LATENCIES, *_SCENES],
    "quantize_cifar10": [*_BRIEF, *_FEWEST, *_RESNET20, "quantize.calibration=32"],
    "quantize_digits": _TIMING,
    "resnet56_cifar10": [*_BRIEF, *_FEWEST, *_RESNET20, "finetune.epochs=1", "finetune.precision='32'"],
    "resnet_digits": [],
    "search_digits_mobilenetv3": [*_BRIEF, *_FEWEST, *_CANDIDATES],
    "search_digits_nasnet_rl": [*_BRIEF, "data.limit_train=40", "data.limit_test=20", "train.epochs=1"],
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
    "spos_mobilenetv3_digits": [*_BRIEF, "supernet.epochs=5", "train.epochs=3"],  # takes over a minute
    "tas_resnet56_cifar10": [*_BRIEF, *_FEWEST, "supernet.epochs=1", "train.epochs=1", "train.warmup_epochs=0"],
    "tas_resnet_digits": ["export.exporter=torchscript"],
    "spos_nas_bench_201_cifar10": [
        *_BRIEF,
        *_FEWEST,
        *_EDGES,
        "supernet.epochs=1",
        "search.trials=40",
        "rank.architectures=8",
        "train.epochs=1",
    ],
    "spos_nas_bench_201_digits": _BRIEF,
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
    "search_ray": [*_BRIEF, *_FEW, "search.evaluator.train.epochs=2", "train.epochs=1"],
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
    bare = words[0] == "compress" and words[1] in (*RUNS, "rank", "plan") and not words[2].startswith("-")
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
        return [*words, "--networks", "10", "--check", "5"]  # the last of equal flags counts
    if words[0] in (*RUNS, "rank"):
        recipe = words[words.index("--recipe") + 1]
        file = folder / recipe if (folder / recipe).is_file() else find_recipe(recipe)
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        own = [flag for flag in (*_BRIEF, "sort.timed=2") if flag.partition(".")[0] in content]
        flags = QUICKER.get(content["name"], own)
        if words[0] == "rank" and content["name"] in QUICKER:
            small = [*_FEW, "data.image_size=16", "supernet.epochs=1", "train.epochs=1", "rank.recalibrate=2"]
            flags = small if flags in ([], _BRIEF) else flags
            words += ["--architectures", "8"]
        return [*words, *(word for flag in flags for word in ("--set", flag))]
    return words


def overrides(name: str) -> dict[str, object]:
    """Return what `quicker` adds, for Python."""
    return {key: yaml.safe_load(value) for key, value in (flag.split("=", 1) for flag in QUICKER[name])}
