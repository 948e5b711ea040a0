"""Does the training of a supernet compute on a GPU what it computes on the CPU, and how fast?

    python benchmarks/supernet_devices.py [RECIPE ...] --device cuda [--updates 30] [--compared 5]

For every method (the recipes for digits that have a section `supernet`): the same first updates on the CPU in float32,
then on `--device` in float32 and in bfloat16, each from the same weights with the same images and paths. Printed are
the largest relative difference of a loss to the CPU's among the first `--compared` updates (later ones drift apart, as
rounding does in any training; TF32 is off, so that float32 is float32) and images a second, over the updates after
those. An update may make several passes over its images, as its method asks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.progress import set_quiet
from compress.core.text_table import text_table
from compress.runs.catalog import find_recipe, shipped_recipes
from compress.runs.recipe import load_recipe
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.datasets.holdout import with_holdout
from search.space import fitted, make_space
from search.supernets.method import SupernetContext, seeded


class Enough(Exception):
    """As many updates have been made as were asked for."""


def first_updates(name: str, device: str, precision: str, count: int) -> tuple[str, list[float], list[float]]:
    """Return the method of a recipe, the losses of its first updates, and images a second in each."""
    recipe = load_recipe(name, {"model": None, "train": None})  # neither is needed, and one may be another run's
    config = recipe.section("supernet").model_copy(update={"precision": precision})
    space = make_space(config.space or recipe.section("search").space, recipe.model)
    whole = fitted(space, recipe.data, recipe.task, recipe.seed)
    assert whole is not None
    data = with_holdout(whole, config.holdout, recipe.seed)
    with seeded(recipe.seed):
        supernet = config.method.make(space, data.task)
    losses: list[float] = []
    rates: list[float] = []

    def watched(update: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(updater: Updater, batch: Batch, number: int) -> Tensor:
            _wait(device)
            started = time.perf_counter()
            loss = update(updater, batch, number)
            _wait(device)
            rates.append(len(batch) / (time.perf_counter() - started))
            losses.append(float(loss))
            if len(losses) >= count:
                raise Enough
            return loss

        return made

    kept = Updater.update
    with tempfile.TemporaryDirectory() as folder:
        try:
            Updater.update = watched(kept)  # type: ignore[method-assign]
            config.method.train(supernet, SupernetContext(config, data, device, recipe.seed, Path(folder)))
        except Enough:
            pass
        finally:
            Updater.update = kept  # type: ignore[method-assign]
    return config.method.name, losses, rates


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def row(name: str, options: argparse.Namespace) -> list[str]:
    """Return the figures of a recipe."""
    method, expected, base = first_updates(name, "cpu", "32", options.updates)
    cells = [name.removesuffix(".yaml"), method, _rate(base, options)]
    for precision in ("32", "bf16"):
        _, losses, rates = first_updates(name, options.device, precision, options.updates)
        pairs = list(zip(losses, expected, strict=True))[: options.compared]
        worst = max(abs(loss - right) / max(abs(right), 1e-12) for loss, right in pairs)
        cells += [f"{worst:.1e}", _rate(rates, options)]
    return cells


def _rate(rates: list[float], options: argparse.Namespace) -> str:
    return f"{statistics.median(rates[options.compared :]):.0f}"


def main() -> None:
    """Print a row for each recipe."""
    texts: dict[str, Any] = {n: find_recipe(n).read_text(encoding="utf-8") for n in shipped_recipes() if "_digits" in n}
    digits = [name for name, text in texts.items() if "\nsupernet:" in text]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(digits)}, or others with a section supernet")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--compared", type=int, default=5, help="first updates whose losses are compared")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)
    set_quiet(True)
    header = ["recipe", "method", "images/s, cpu", "float32 to cpu", "images/s", "bf16 to cpu", "images/s"]
    print(text_table(header, [row(name, options) for name in options.recipes or digits]))


if __name__ == "__main__":
    main()
