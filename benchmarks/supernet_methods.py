"""What a method of training a supernet adds to the passes that its updates consist of.

    python benchmarks/supernet_methods.py                                  # the supernet of every recipe on digits
    python benchmarks/supernet_methods.py spos_mobilenetv3_digits --updates 40
    python benchmarks/supernet_methods.py --device cuda --precision bf16

Trains the supernet of a recipe for some updates and adds up, within each update, the time of the forward passes (every
outermost call of a module) and of the backward passes. The ratio is the whole update over that sum, median over the
updates, without the optimisers' steps, which any training has and which stand by themselves: drawing paths, the loss,
scores are what is above 1. Preparing batches counts for nobody. On one thread and in CPU time; on a GPU in wall clock,
waiting for the device at each border. State is what parameters and buffers, and the optimisers beside them, hold; peak
is that of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from compress.core.progress import set_quiet
from compress.runs.catalog import find_recipe, shipped_recipes
from compress.runs.recipe import load_recipe
from compress.training.engine import Engine
from compress.training.update import Updater
from evaluators.datasets.holdout import with_holdout
from search.space import fitted, make_space
from search.supernets.held_out import HeldOut
from search.supernets.method import SupernetContext, seeded


class Enough(Exception):
    """As many updates have been timed as were asked for."""


@dataclass
class Clock:
    """Times of updates, and of the passes within them."""

    wanted: int
    device: str
    whole: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    stepping: list[float] = field(default_factory=list)
    current: float = 0.0
    loading: float = 0.0
    steps: float = 0.0
    depth: int = 0
    optimizer_bytes: int = 0

    def now(self) -> float:
        """Return CPU seconds, or wall clock once a GPU has done what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def passing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed as a pass where it is not within another."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.depth:
                return function(*args, **kwargs)
            self.depth += 1
            started = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.current += self.now() - started
                self.depth -= 1

        return timed

    def reading(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `HeldOut.batch`, whose time does not count: batches are prepared outside updates elsewhere."""

        def timed(*args: Any) -> Any:
            started = self.now()
            found = function(*args)
            self.loading += self.now() - started
            return found

        return timed

    def begin_step(self, *_: Any) -> None:
        """Note that an optimiser begins its step."""
        self.steps -= self.now()

    def end_step(self, *_: Any) -> None:
        """Note that it has made it."""
        self.steps += self.now()

    def updating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `Updater.update`, timed as a whole."""

        def timed(updater: Updater, *args: Any) -> Any:
            self.current = self.loading = self.steps = 0.0
            started = self.now()
            found = function(updater, *args)
            self.whole.append(self.now() - started - self.loading - self.steps)
            self.stepping.append(self.steps)
            self.passes.append(self.current)
            if len(self.whole) >= self.wanted:
                own = [updater.optimizer, *updater.step.optimizers().values()]
                self.optimizer_bytes = sum(_bytes(state.values()) for each in own for state in each.state.values())
                raise Enough
            return found

        return timed


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def measure(name: str, options: argparse.Namespace) -> list[str]:
    """Return the row of a recipe."""
    recipe = load_recipe(name, {"model": None, "train": None})  # neither is needed, and one may be another run's
    config = recipe.section("supernet").model_copy(update={"precision": options.precision})
    named = config.space or recipe.section("search").space
    space = make_space(named, recipe.model)
    whole = fitted(space, recipe.data, recipe.task, recipe.seed)
    assert whole is not None
    data = with_holdout(whole, config.holdout, recipe.seed)
    with seeded(recipe.seed):
        supernet = config.method.make(space, data.task)
    clock = Clock(options.updates, options.device)
    kept = nn.Module.__call__, Engine.backward, Updater.update, HeldOut.batch
    hooks = [
        register_optimizer_step_pre_hook(clock.begin_step),
        register_optimizer_step_post_hook(clock.end_step),
    ]
    with tempfile.TemporaryDirectory() as folder:
        context = SupernetContext(config, data, options.device, recipe.seed, Path(folder))
        try:
            nn.Module.__call__ = clock.passing(kept[0])  # type: ignore[method-assign]
            Engine.backward = clock.passing(kept[1])  # type: ignore[method-assign]
            Updater.update = clock.updating(kept[2])  # type: ignore[method-assign]
            HeldOut.batch = clock.reading(kept[3])  # type: ignore[method-assign]
            config.method.train(supernet, context)
        except Enough:
            pass
        finally:
            nn.Module.__call__, Engine.backward, Updater.update, HeldOut.batch = kept  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()
    pairs = list(zip(clock.whole, clock.passes, strict=True))[3:]
    ratio = statistics.median(update / passes for update, passes in pairs)
    model = _bytes([*supernet.parameters(), *supernet.buffers()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    update = 1000 * statistics.median(update for update, _ in pairs)
    return [
        name.removesuffix(".yaml"), config.method.name, f"{ratio:.3f}", f"{update:.1f}",
        f"{1000 * statistics.median(clock.stepping[3:]):.1f}",
        f"{model / 2**20:.2f}", f"{clock.optimizer_bytes / 2**20:.2f}", f"{peak:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    texts = {name: find_recipe(name).read_text(encoding="utf-8") for name in shipped_recipes() if "_digits" in name}
    digits = [name for name, text in texts.items() if "\nsupernet:" in text]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(digits)}, or others with a section supernet")
    parser.add_argument("--updates", type=int, default=23, help="timed updates; the first three do not count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16", "16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    table = Table(
        "recipe",
        "method",
        "update / passes",
        "update, ms",
        "optimiser, ms",
        "weights, MiB",
        "optimiser, MiB",
        "peak, MiB",
    )
    for name in options.recipes or digits:
        table.add_row(*measure(name, options))
    Console().print(table)


if __name__ == "__main__":
    main()
