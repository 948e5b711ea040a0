"""transformers' models at half of their MACs, bit-equal in a fresh process and in ONNX Runtime; small random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import told_by

from compress.bundle import open_model
from compress.core.tensors import called, tensors_in
from compress.graph.apply import apply
from compress.prune.narrow import shrunk
from compress.prune.structure import Setting, plan_structure, prunable
from compress.prune.structure_config import StructureConfig
from compress.testing.spaces import enliven
from evaluators.tasks import tasks
from spaces.zoo import ModelConfig

pytest.importorskip("transformers", reason="needs the extra huggingface: pip install 'compress[huggingface]'")

RESNET = {
    "model_type": "resnet", "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage4"],
}  # fmt: skip
DETR = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 10, "backbone_config": RESNET,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "segformer_b0": ("segformer", "segmentation", {}),
    "swin_tiny": ("swin", "classification", {"window_size": 4}),
    "vit": (
        "vit",
        "classification",
        {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768},
    ),
    "detr": ("detr", "detection", DETR),
}
"""By name: type, task, config; SegFormer-B0 and (but for its windows) Swin-T as published, the others smaller."""
SIDE = 128

RELOAD = """
import json, sys
from pathlib import Path
import torch
from compress.bundle import Bundle
from compress.core.tensors import called, tensors_in
from compress.export.exporters import ExportConfig, export
for folder in sys.argv[1:]:
    folder = Path(folder)
    saved = torch.load(folder / "io.pt", weights_only=True)
    bundle = Bundle.load(folder / "bundle")
    with torch.no_grad():
        found = list(tensors_in(called(bundle.model, bundle.task.arguments(saved["x"]))))
    equal = len(found) == len(saved["y"]) and all(map(torch.equal, found, saved["y"]))
    config = ExportConfig(exporter="torchscript")
    result = export(bundle.model, bundle.task.arguments(saved["x"][:1]), folder / "model.onnx", config, bundle.task)
    print(json.dumps({"name": folder.name, "equal": equal, "parity": result.parity_max_rel}), flush=True)
"""


def prune(name: str, folder: Path) -> Any:
    kind, task, kwargs = MODELS[name]
    config = ModelConfig(
        source="huggingface", name=kind, kwargs={"num_labels": 8, **kwargs}, input_size=(3, SIDE, SIDE)
    )
    bundle = open_model(config, task=tasks.get(task)()).bundle
    torch.manual_seed(0)
    enliven(bundle.model)
    settings = StructureConfig.model_validate({"kind": "structure", "budget": {"macs": 0.5}})
    inputs = bundle.example_inputs(1)
    graph = prunable(bundle.model, inputs, settings)
    plan = plan_structure(bundle.model, graph, inputs, settings, Setting(multiple=8, task=bundle.task))
    small = shrunk(bundle, plan, apply(plan, bundle.model))
    images = torch.randn(2, 3, SIDE, SIDE)
    folder.mkdir()
    with torch.no_grad():
        outputs = list(tensors_in(called(small.model, bundle.task.arguments(images))))
    torch.save({"x": images, "y": outputs}, folder / "io.pt")
    small.save(folder / "bundle")
    return plan


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("huggingface")
    plans = {name: prune(name, root / name) for name in MODELS}
    return plans, *told_by(RELOAD, [root / name for name in MODELS])


@pytest.mark.slow
@pytest.mark.xdist_group("huggingface")  # or each worker would compute the results
@pytest.mark.parametrize("name", MODELS)
def test_half_the_macs_reloads_bit_equal_and_exports(results: Any, name: str) -> None:
    plans, reloaded, errors = results
    before, after = plans[name].macs
    assert 0.48 <= after / before <= 0.52
    assert name in reloaded, errors[-2000:]
    assert reloaded[name]["equal"]
    assert reloaded[name]["parity"] <= 1e-4


@pytest.mark.slow
@pytest.mark.xdist_group("huggingface")
def test_what_stays_whole_is_named(results: Any) -> None:
    kept = {name: {skip.layer for skip in plan.skipped} for name, plan in results[0].items()}
    assert kept["swin_tiny"] == kept["vit"] == {"model.classifier"}
    assert kept["segformer_b0"] == {"model.decode_head.classifier"}
    assert {"model.class_labels_classifier", "model.bbox_predictor.layers.2"} <= kept["detr"]
