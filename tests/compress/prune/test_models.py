"""Models of many kinds beyond classifiers (tests/models, one file each) at half of their MACs."""

import copy
import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from processes import told_by
from safetensors.torch import save_file
from torch import nn

import compress
from compress.core.tensors import call, tensors_in
from compress.graph.graph import inside
from compress.prune.structure import plan_structure, prunable
from compress.prune.structure_config import StructureConfig
from compress.testing.spaces import enliven
from evaluators.cost import count_macs, parameter_macs

FOLDER = Path(__file__).parents[2] / "models"
MODELS = sorted(path.stem for path in FOLDER.glob("*.py"))

WHOLE = {
    "hyperprior": 0.21,  # its last layer gives the image, two give latents whose likelihoods are outputs
    "leyolo": 0.2,  # the last layers of its narrow heads give 64 shares of distances, and the classes
}
"""Share of the MACs in layers that stay whole at most, where it is more than a twentieth, and why."""

RELOAD = """
import importlib, json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
import compress
from compress.core.tensors import call, tensors_in
from compress.export.exporters import ExportConfig, export
from compress.graph.plan import Plan
for folder in map(Path, sys.argv[1:]):
    module = importlib.import_module(folder.name)
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    model = compress.apply(plan, module.make().eval())
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    inputs = module.inputs()
    inputs = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    with torch.no_grad():
        found = list(tensors_in(call(model, inputs)))
    equal = all(map(torch.equal, found, torch.load(folder / "outputs.pt", weights_only=True)))
    config = ExportConfig(**{"exporter": "torchscript", **getattr(module, "EXPORT", {})})
    result = export(model, inputs, folder / "model.onnx", config)
    print(json.dumps({"name": folder.name, "equal": equal, "parity": result.parity_max_rel}), flush=True)
"""


def load(name):
    """Return a model of the folder in evaluation mode, with norms that are not as new, and its inputs."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.make()
    enliven(model)
    inputs = module.inputs()
    return model.eval(), inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs


@functools.cache
def pruned(name):
    """Return the model, its inputs, what of it may be narrowed, the plan and the smaller model."""
    model, inputs = load(name)
    config = StructureConfig(kind="structure", criterion="random", budget={"macs": 0.5}, align=1)
    graph = prunable(model, inputs, config)
    plan = plan_structure(model, graph, inputs, config)
    return model, inputs, graph, plan, compress.apply(plan, model)


class NormOverKept(nn.Module):
    """A group or layer norm over the channels that stay; the others give zero."""

    def __init__(self, norm, kept):
        super().__init__()
        self.norm, self.last = norm, isinstance(norm, nn.LayerNorm)
        self.marks = torch.zeros(len(norm.weight)).index_fill_(0, torch.tensor(kept), 1)

    def forward(self, x):
        x = x if self.last else x.movedim(1, -1)
        groups = 1 if self.last else self.norm.num_groups
        parts, marks = x.unflatten(-1, (groups, -1)), self.marks.reshape(groups, -1)
        over = -1 if self.last else (*range(1, x.dim() - 1), -1)
        count = marks.sum(-1, keepdim=True) * (1 if self.last else x[0, ..., 0].numel())
        mean = (parts * marks).sum(over, keepdim=True) / count
        variance = ((parts - mean).square() * marks).sum(over, keepdim=True) / count
        parts = (parts - mean) / (variance + self.norm.eps).sqrt()
        x = parts.flatten(-2) * self.marks * self.norm.weight
        x = x if self.norm.bias is None else x + self.norm.bias
        return x if self.last else x.movedim(-1, 1)


def silenced(model, plan):
    """Return a copy of the dense model in which every position that the plan removes is zero and no norm sees it."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, kept in dims.items():
                gone = sorted(set(range(tensors[name].shape[dim])) - set(kept))
                tensors[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    for name, norm in list(model.named_modules()):
        if isinstance(norm, (nn.GroupNorm, nn.LayerNorm)) and f"{name}.weight" in plan.kept:
            model.set_submodule(name, NormOverKept(norm, plan.kept[f"{name}.weight"][0]))
    return model


def whole_share(model, inputs, plan):
    """Return which share of the MACs lies in layers that the plan leaves whole in every way."""
    whole = {skip.layer for skip in plan.skipped if ":" not in skip.layer}
    macs = parameter_macs(model, inputs)
    return sum(number for name, number in macs.of_parameter.items() if inside(name, whole)) / macs.total


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_macs_computes_what_the_dense_model_does_without_the_removed_units(name):
    model, inputs, _, plan, small = pruned(name)
    assert plan.macs == (count_macs(model, inputs), count_macs(small, inputs))
    assert 0.47 <= plan.macs[1] / plan.macs[0] <= 0.52
    with torch.no_grad():
        expected, found = (list(tensors_in(call(each, inputs))) for each in (silenced(model, plan), small))
    assert expected and len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * max(1.0, one.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_little_stays_whole_and_it_is_named(name):
    model, inputs, graph, plan, _ = pruned(name)
    assert whole_share(model, inputs, plan) <= WHOLE.get(name, 0.05), {s.layer: s.reason for s in plan.skipped}
    told = {layer for group in graph.groups for layer in group.layers}
    told |= {skip.layer.partition(":")[0] for skip in plan.skipped}
    kinds = nn.Linear, nn.modules.conv._ConvNd
    assert {layer for layer, module in model.named_modules() if isinstance(module, kinds)} <= told


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Open all of them in one new process; what it found, by name, and what it complained of."""
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        _, inputs, _, plan, small = pruned(name)
        (root / name).mkdir()
        (root / name / "plan.json").write_text(json.dumps(plan.to_dict()))
        save_file(
            {key: value.contiguous() for key, value in small.state_dict().items()}, root / name / "weights.safetensors"
        )
        with torch.no_grad():
            torch.save(list(tensors_in(call(small, inputs))), root / name / "outputs.pt")
    return told_by(RELOAD, [root / name for name in MODELS], FOLDER)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_in_a_new_process_and_in_onnx_runtime(reloaded, name):
    found, errors = reloaded
    assert name in found, errors[-2000:]
    assert found[name]["equal"]
    assert found[name]["parity"] <= 1e-4
