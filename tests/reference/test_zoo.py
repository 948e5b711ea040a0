"""Nine families at half of their MACs, bit-equal in a fresh process and in ONNX Runtime; benchmarks/zoo.py has all."""

import pytest
import torch
from processes import told_by

from compress.bundle import open_model
from compress.graph.apply import apply
from compress.prune.narrow import shrunk
from compress.prune.structure import Setting, plan_structure, prunable
from compress.prune.structure_config import StructureConfig
from compress.testing.spaces import enliven
from spaces.zoo import ModelConfig

SMALL = {"input_size": (3, 96, 96)}
MODELS = {
    "resnet26": SMALL, "densenet121": SMALL | {"kwargs": {"block_config": [3, 3, 3, 3]}}, "inception_v4": SMALL,
    "mobilenetv3_large_100": SMALL, "regnety_004": SMALL, "convnext_atto": SMALL | {"kwargs": {"depths": [1, 1, 2, 1]}},
    "vit_tiny_patch16_224": {"input_size": (3, 64, 64), "kwargs": {"img_size": 64, "depth": 4}},
    "swin_tiny_patch4_window7_224": {"kwargs": {"depths": [1, 1, 2, 1]}}, "pvt_v2_b0": SMALL,
}  # fmt: skip
"""What each is built with: images as small as its layers allow, and fewer blocks of the same kind, cost less time."""

RELOAD = """
import json, sys
from pathlib import Path
import torch
import compress
from compress.export.exporters import ExportConfig, export
for folder in sys.argv[1:]:
    folder = Path(folder)
    saved = torch.load(folder / "io.pt", weights_only=True)
    model = compress.load(folder / "bundle")
    with torch.no_grad():
        equal = torch.equal(model(saved["x"]), saved["y"])
    result = export(model, saved["x"], folder / "model.onnx", ExportConfig(exporter="torchscript"))
    print(json.dumps({"name": folder.name, "equal": equal, "parity": result.parity_max_rel}), flush=True)
"""


def _prune(name, folder):
    bundle = open_model(ModelConfig(name=name, **MODELS[name])).bundle
    torch.manual_seed(0)
    enliven(bundle.model)
    config = StructureConfig(kind="structure", budget={"macs": 0.5})
    x = bundle.example_inputs(1)
    plan = plan_structure(bundle.model, prunable(bundle.model, x, config), x, config, Setting(multiple=16))
    small = shrunk(bundle, plan, apply(plan, bundle.model))
    x = bundle.example_inputs(2)
    folder.mkdir()
    with torch.no_grad():
        torch.save({"x": x, "y": small.model(x)}, folder / "io.pt")
    small.save(folder / "bundle")
    return plan


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    plans = {name: _prune(name, root / name) for name in MODELS}
    return plans, *told_by(RELOAD, [root / name for name in MODELS])


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.xdist_group("zoo")  # or each worker would compute the results
@pytest.mark.parametrize("name", MODELS)
def test_half_the_macs_reloads_bit_equal_and_exports(results, name):
    plans, reloaded, errors = results
    before, after = plans[name].macs
    assert 0.48 <= after / before <= 0.52
    assert name in reloaded, errors[-2000:]
    assert reloaded[name]["equal"]
    assert reloaded[name]["parity"] <= 1e-4
