"""ResNet-56 on CIFAR-10 at half of its MACs: this toolkit beside torch-pruning's magnitude pruner, same fine-tuning.

    python benchmarks/resnet56_cifar10.py cifar10.npz resnet56.safetensors [--epochs 10] [--only compress|torch-pruning]
        [--set finetune.lr=0.01]

Both start from the same weights, remove channels inside the residual blocks, re-estimate batch norms on the same
batches and are fine-tuned by the section `finetune` of recipes/resnet56_cifar10.yaml (distillation from the dense
model, same seed, same order of images). Prints one table.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

from torch import nn

from compress.bundle import open_model
from compress.core.batch_norm import recalibrate
from compress.graph.apply import apply
from compress.prune.structure import Setting, plan_structure, prunable
from compress.runs.recipe import load_recipe
from compress.runs.recipe_file import split_overrides
from compress.training.fit import fit
from evaluators.cost import count_macs
from evaluators.latency.targets.local import LocalTarget
from evaluators.latency.width_multiple import width_multiple
from evaluators.tasks.evaluation import evaluate


def ours(model: nn.Module, inputs: Any, config: Any) -> nn.Module:
    """The recipe's own section `prune`."""
    setting = Setting(multiple=width_multiple(LocalTarget()).value)
    return apply(plan_structure(model, prunable(model, inputs, config), inputs, config, setting), model)


def torch_pruning(model: nn.Module, inputs: Any, config: Any) -> nn.Module:
    """torch-pruning's group magnitude (L2), half of the channels between the two convolutions of every block."""
    import torch_pruning as tp

    small = copy.deepcopy(model)
    inside = {module for name, module in small.named_modules() if name.startswith("layer") and name.endswith("conv1")}
    kept = [m for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in inside]
    pruner = tp.pruner.BasePruner(
        small,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=kept,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    return small


def main() -> None:
    """Run both arms one after the other and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--only", choices=["compress", "torch-pruning"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, both arms")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = {"data.path": arguments.data, "model.checkpoint": arguments.checkpoint}
    if arguments.epochs:
        overrides["finetune.epochs"] = arguments.epochs
    overrides |= split_overrides(arguments.set)
    recipe = load_recipe("resnet56_cifar10.yaml", overrides)
    opened = open_model(recipe.model, recipe.data, recipe.seed, recipe.task)
    dense, data = opened.bundle.model, opened.data
    assert data is not None and data.train is not None and data.test is not None
    inputs = opened.bundle.example_inputs(1)
    print(
        f"dense: {count_macs(dense, inputs) / 1e6:.1f} M MACs, "
        f"top-1 {evaluate(dense, data.test, data.task)['top1']:.2f}"
    )
    for name, arm in (("compress", ours), ("torch-pruning", torch_pruning)):
        if arguments.only not in (None, name):
            continue
        small = arm(dense, inputs, recipe.section("prune")).eval()
        recalibrate(small, data.train.epoch(0), 20, forward=data.task.forward)
        before = evaluate(small, data.test, data.task)["top1"]
        started = time.process_time()
        fit(small, data, recipe.section("finetune"), seed=recipe.seed, teacher=dense)
        minutes = (time.process_time() - started) / 60
        after = evaluate(small, data.test, data.task)["top1"]
        kept = count_macs(small, inputs) / count_macs(dense, inputs)
        print(f"{name:14}  MACs {kept:.3f}  top-1 {before:.2f} -> {after:.2f}  {minutes:.1f} CPU minutes", flush=True)


if __name__ == "__main__":
    main()
