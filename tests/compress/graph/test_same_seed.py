"""The same seed gives the same plans, group names and spaces, whatever hashes and addresses a process draws."""

import os
import subprocess
import sys

import pytest

MODELS = {
    "resnet18": 64, "regnety_002": 64, "densenet121": 64, "mobilenetv2_100": 64, "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64, "convnext_atto": 64, "ghostnet_100": 64, "res2net50_26w_4s": 64, "dla34": 64,
    "hrnet_w18_small": 64, "pvt_v2_b0": 64, "poolformer_s12": 64, "levit_128": 224, "edgenext_xx_small": 64,
    "mobilevit_xxs": 64, "fastvit_t8": 64, "vgg11_bn": 64, "inception_v4": 96, "repvgg_a0": 64,
}  # fmt: skip
SMALLER = {
    "densenet121": {"block_config": [2, 2, 2, 2]}, "res2net50_26w_4s": {"layers": [1, 1, 1, 1]},
    "vgg11_bn": {"mlp_ratio": 0.1, "num_classes": 10},
}  # fmt: skip
"""What makes the dearest of them small: fewer blocks of the same kind, and VGG's 100 million weights of its head."""
SCRIPT = """
import hashlib, json, sys
import timm, torch
from compress.graph.build import build_graph
from compress.graph.plan import make_plan
from compress.criteria.score import score_units
from compress.graph.select import strongest
from compress.criteria.unit_criterion import ScoringData
from spaces.registry import create

torch.set_num_threads(1)
models, smaller = map(json.loads, sys.argv[1:])
for name, side in models.items():
    torch.manual_seed(0)
    model, x = timm.create_model(name, **smaller.get(name, {})).eval(), torch.zeros(1, 3, side, side)
    graph = build_graph(model, x)
    found = [[(g.name, g.size, g.repeats, [(s.tensor, s.dim) for s in g.slices]) for g in graph.groups], graph.blocks]
    for criterion in ("random", "magnitude"):
        data = ScoringData(graph, generator=torch.Generator().manual_seed(0))
        scored, scores = score_units(model, graph, criterion, data)
        kept = {n: strongest(s, max(1, len(s) // 2)) for n, s in scores.items()}
        plan = make_plan(model, scored, kept).to_dict()
        found += [{n: s.tolist() for n, s in scores.items()}, plan["kept"], plan["layers"]]
    print(name, hashlib.sha256(json.dumps(found).encode()).hexdigest())
space = create("channels", {"model": {"source": "timm", "name": "resnet18", "kwargs": {"num_classes": 10}}})
print("channels", [(d.name, d.choices) for d in space.decisions])
"""


@pytest.mark.slow
def test_two_processes_with_other_hashes_find_the_same_in_twenty_models():
    import json

    def run(seed, models):
        env = {**os.environ, "PYTHONHASHSEED": seed, "MALLOC_ARENA_MAX": seed}
        command = [sys.executable, "-c", SCRIPT, json.dumps(models), json.dumps(SMALLER)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    processes = [run(seed, MODELS) for seed in "12"]
    outputs = [process.communicate(timeout=900) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1][-2000:]
    assert len(outputs[0][0].splitlines()) == len(MODELS) + 1
    assert len({out for out, _ in outputs}) == 1
