"""Our coupled positions against torch-pruning's dependency graph: removing one unit gives the same tensors."""

import copy

import pytest
import timm
import torch
from torch import nn

from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.plan import make_plan

tp = pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "densenet121", "inception_v4", "convnext_atto"])
def test_removing_a_channel_gives_the_tensors_that_torch_pruning_gives(name):
    torch.manual_seed(0)
    size = 96 if name == "inception_v4" else 64
    model, x = timm.create_model(name, num_classes=7).eval(), torch.randn(1, 3, size, size)
    graph = build_graph(model, x)
    groups = [group for group in graph.groups if group.kind in ("channels", "mlp")]
    for group in groups[:: max(1, len(groups) // 4)]:
        unit = group.size // 3
        kept = torch.tensor([index for index in range(group.size) if index != unit])
        ours = apply(make_plan(model, graph, {group.name: kept}), model).state_dict()
        theirs = _torch_pruning(model, x, group.layers[0], unit)
        assert ours.keys() == theirs.keys()
        different = [
            key for key in ours if ours[key].shape != theirs[key].shape or not torch.equal(ours[key], theirs[key])
        ]
        assert not different, group.name


def _torch_pruning(model, x, layer, unit):
    other = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(other, x)
    module = other.get_submodule(layer)
    if isinstance(module, nn.Linear):
        prune = tp.prune_linear_out_channels
    elif module.groups == module.out_channels > 1:
        prune = tp.prune_depthwise_conv_out_channels
    else:
        prune = tp.prune_conv_out_channels
    graph.get_pruning_group(module, prune, [unit]).prune()
    return other.state_dict()
