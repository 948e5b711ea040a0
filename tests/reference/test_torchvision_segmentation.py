"""torchvision's segmenters at half of their MACs: exact, equal in a fresh process and in ONNX Runtime, at any size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import told_by
from torch import Tensor, nn

from compress.bundle import Bundle, open_model
from compress.graph.apply import apply
from compress.graph.plan import Plan
from compress.prune.narrow import shrunk
from compress.prune.structure import Setting, plan_structure, prunable
from compress.prune.structure_config import StructureConfig
from compress.testing.spaces import enliven
from spaces.zoo import ModelConfig

MODELS: dict[str, dict[str, Any]] = {
    "fcn_resnet50": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {},
    "lraspp_mobilenet_v3_large": {},
}
"""What each is built with."""

RELOAD = """
import json, sys
from pathlib import Path
import torch
from compress.bundle import Bundle
from compress.export.exporters import ExportConfig, export
for folder in map(Path, sys.argv[1:]):
    saved = torch.load(folder / "io.pt", weights_only=True)
    bundle = Bundle.load(folder / "bundle")
    with torch.no_grad():
        equal = torch.equal(bundle.model(saved["x"])["out"], saved["y"])
    config = ExportConfig(exporter="torchscript", dynamic_size=True)
    result = export(bundle.model, saved["x"], folder / "model.onnx", config, bundle.task)
    print(json.dumps({"name": folder.name, "equal": equal, "parity": result.parity_max_rel,
                      "sizes": result.checked_sizes}), flush=True)
"""


def silenced(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the dense model with all removed positions at zero."""
    dense = copy.deepcopy(model)
    tensors = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                gone[list(indices)] = False
                tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return dense


def off_by(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def pruned(name: str, folder: Path) -> tuple[float, float]:
    """Write the pruned model to `folder`; return its share of the MACs, and how far it is from the silenced one."""
    model = ModelConfig(source="torchvision", name=name, input_size=(3, 64, 64), kwargs=MODELS[name])
    bundle: Bundle = open_model(model).bundle
    torch.manual_seed(0)
    enliven(bundle.model)
    config, x = StructureConfig(kind="structure", budget={"macs": 0.5}), bundle.example_inputs(1)
    plan = plan_structure(bundle.model, prunable(bundle.model, x, config), x, config, Setting(multiple=16))
    small = shrunk(bundle, plan, apply(plan, bundle.model))
    folder.mkdir()
    x = small.example_inputs(2)
    assert isinstance(x, Tensor)
    with torch.no_grad():
        given = small.model(x)
        expected = silenced(bundle.model, plan)(x)
        torch.save({"x": x, "y": given["out"]}, folder / "io.pt")
    small.save(folder / "bundle")
    return plan.macs[1] / plan.macs[0], max(off_by(given[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_half_the_macs_are_exact_and_export_at_any_size(tmp_path: Path) -> None:
    figures = {name: pruned(name, tmp_path / name) for name in MODELS}
    found, errors = told_by(RELOAD, [tmp_path / name for name in MODELS])
    assert list(found) == list(MODELS), errors[-2000:]
    for name, (macs, difference) in figures.items():
        assert 0.48 <= macs <= 0.52, name
        assert difference <= 1e-5, name
        assert found[name]["equal"] and found[name]["parity"] <= 1e-4, name
        assert found[name]["sizes"] == [[64, 64], [81, 73], [96, 128]], name


def test_every_builder_is_found_by_its_task() -> None:
    from torchvision.models import list_models, segmentation

    for name in list_models(module=segmentation):
        config = ModelConfig(source="torchvision", name=name)
        assert config.problems() == [] and config.from_source.task_of(config).name == "segmentation"
