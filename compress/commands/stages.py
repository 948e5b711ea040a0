"""Commands that run a recipe for the sake of one of its stages, such as `compress prune`.

The stages themselves import torch, so what `compress --help` says of them stands here. Every other stage, and those of
third parties, are run by `compress run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compress.commands.options import (
    DevicesFlag,
    JsonFlag,
    OutFlag,
    QuietFlag,
    RayFlag,
    RecipeFlag,
    ResumeFlag,
    SeedFlag,
    SetFlag,
)
from compress.commands.run import run_stages


@dataclass(frozen=True)
class StageCommand:
    """A stage that has a command of its name: its help, an example, and whether its work may go to a Ray cluster."""

    stage: str
    help: str
    example: str
    on_ray: bool = False

    def function(self) -> Callable[..., None]:
        """Return the command as a function for typer."""
        name = self.stage

        def command(
            recipe: RecipeFlag,
            out: OutFlag = None,
            set_: SetFlag = None,
            resume: ResumeFlag = False,
            device: DevicesFlag = "auto",
            seed: SeedFlag = None,
            quiet: QuietFlag = False,
            json: JsonFlag = False,
        ) -> None:
            run_stages(name, name, recipe, out, set_ or [], resume, device, seed, quiet, json)

        def command_on_ray(
            recipe: RecipeFlag,
            out: OutFlag = None,
            set_: SetFlag = None,
            resume: ResumeFlag = False,
            device: DevicesFlag = "auto",
            seed: SeedFlag = None,
            quiet: QuietFlag = False,
            json: JsonFlag = False,
            ray_address: RayFlag = None,
        ) -> None:
            run_stages(name, name, recipe, out, set_ or [], resume, device, seed, quiet, json, ray_address)

        function: Callable[..., None] = command_on_ray if self.on_ray else command
        function.__name__, function.__doc__ = name, self.help
        return function


STAGE_COMMANDS = (
    StageCommand(
        "prune",
        "Prune the model of a recipe.\n\nWith what the recipe puts around it: training, fine-tuning, export, latency.",
        "compress prune --recipe dimap_swin.yaml",
    ),
    StageCommand(
        "distill",
        "Let the model of a recipe learn from teachers.\n\n"
        "With what the recipe puts around it: training, pruning, export, latency.",
        "compress distill --recipe meal_v2_digits.yaml",
    ),
    StageCommand(
        "sort",
        "Train a model and its nested sub-networks at once.\n\n"
        "They are a family of sizes, from which `compress pick` takes. With what the recipe puts around it: training, "
        "pruning, export, latency.",
        "compress sort --recipe sortednet_mobilenetv3_digits.yaml",
    ),
    StageCommand(
        "quantize",
        "Write the model of a recipe in INT8 or FP16.\n\n"
        "The float file stays where that is not faster or not good enough. With what the recipe puts around it: "
        "training, pruning, export, latency.",
        "compress quantize --recipe quantize_digits.yaml",
    ),
    StageCommand(
        "search",
        "Search for an architecture.\n\n"
        "With what the recipe puts around it: training of the winner, pruning, fine-tuning, export, latency.",
        "compress search --recipe search_digits_mobilenetv3.yaml",
        on_ray=True,
    ),
)
