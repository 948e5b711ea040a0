"""torchvision's detectors at half of their MACs: exact, equal in a fresh process and in ONNX Runtime."""

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
from evaluators.tasks.detection_file import of_heads, paired
from spaces.zoo import ModelConfig, build_model

SIDES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 96,
    "retinanet_resnet50_fpn": 64,
    "ssdlite320_mobilenet_v3_large": 320,
    "fcos_resnet50_fpn": 160,
}
"""Pixels a side of the images: of smaller ones FCOS has maps of 1x1, on which its group norms keep their channels."""
EAGER = {"retinanet_resnet50_fpn": {"score_thresh": 0.0}, "fcos_resnet50_fpn": {"score_thresh": 0.0}}
"""What lets those that are built with random weights find something."""

RELOAD = """
import json, sys
from pathlib import Path
import torch
from compress.bundle import Bundle
from compress.core.tensors import tensors_in
from compress.export.exporters import ExportConfig, export
for folder in map(Path, sys.argv[1:]):
    saved = torch.load(folder / "io.pt", weights_only=True)
    bundle = Bundle.load(folder / "bundle")
    with torch.no_grad():
        found = bundle.model(saved["x"])
    equal = all(torch.equal(one, other) for one, other in zip(tensors_in(found), tensors_in(saved["y"]), strict=True))
    told = {"name": folder.name, "equal": equal}
    for name, post_processing in (("found", True), ("heads", False)):
        config = ExportConfig(exporter="torchscript", post_processing=post_processing)
        result = export(bundle.model, saved["x"], folder / f"{name}.onnx", config, bundle.task)
        told |= {name: result.parity_max_rel, f"{name}_notes": result.notes}
    print(json.dumps(told), flush=True)
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


def pruned(name: str, folder: Path) -> dict[str, Any]:
    """Write the pruned model to `folder`; return its share of the MACs, and how far its heads are from the dense ones.

    Those are the silenced model's; where a norm sees a narrowed width, they are None: it normalises what stays.
    """
    kwargs, side = {"num_classes": 4} | EAGER.get(name, {}), SIDES[name]
    bundle = open_model(ModelConfig(source="torchvision", name=name, input_size=(3, side, side), kwargs=kwargs)).bundle
    torch.manual_seed(0)
    enliven(bundle.model)
    config, x = StructureConfig(kind="structure", budget={"macs": 0.5}), bundle.example_inputs(1)
    plan = plan_structure(bundle.model, prunable(bundle.model, x, config), x, config, Setting(multiple=16))
    small: Bundle = shrunk(bundle, plan, apply(plan, bundle.model))
    folder.mkdir()
    with torch.no_grad():
        given, expected = (
            of_heads(model)(torch.stack(list(x))) for model in (small.model, silenced(bundle.model, plan))
        )
        torch.save({"x": x, "y": small.model(x)}, folder / "io.pt")
    ours, theirs = paired(given, expected)
    normed = [row.name for row in plan.layers if row.normalised]
    difference = None if normed else max(off_by(ours[key], theirs[key]) for key in theirs)
    small.save(folder / "bundle")
    return {"macs": plan.macs[1] / plan.macs[0], "difference": difference, "normed": normed}


@pytest.mark.slow
def test_half_the_macs_are_exact_and_export(tmp_path: Path) -> None:
    figures = {name: pruned(name, tmp_path / name) for name in SIDES}
    found, errors = told_by(RELOAD, [tmp_path / name for name in SIDES])
    assert list(found) == list(SIDES), errors[-2000:]
    for name, figure in figures.items():
        assert 0.48 <= figure["macs"] <= 0.52, name
        assert figure["difference"] is None or figure["difference"] <= 1e-5, name
        assert found[name]["equal"] and 0 < found[name]["found"] <= 1e-4 and 0 < found[name]["heads"] <= 1e-4, name


def test_every_builder_is_found_by_its_task_and_sized_by_its_images() -> None:
    from torchvision.models import detection, list_models

    from spaces.sources.torchvision.detection import OTHER_TARGETS

    for name in list_models(module=detection):
        config = ModelConfig(source="torchvision", name=name)
        assert bool(config.problems()) == (name in OTHER_TARGETS)
        assert name in OTHER_TARGETS or config.from_source.task_of(config).name == "detection"
    config = ModelConfig(source="torchvision", name="fasterrcnn_mobilenet_v3_large_fpn", input_size=(3, 64, 96))
    built = build_model(config)
    transform: Any = built.module.transform
    assert (transform.min_size, transform.max_size) == ((64,), 96) and built.task.num_outputs == 91
    assert built.pretrained_cfg["mean"] == (0, 0, 0) and built.config.kwargs["max_size"] == 96
