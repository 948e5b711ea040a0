from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from compress.bundle import Bundle
from compress.pipeline import run

TRAIN = {
    "space": {"name": "mobilenetv3", "preset": "tiny"},
    "strategy": {"name": "random"},
    "evaluator": {"kind": "train", "train": {"epochs": 1}},
    "trials": 2,
}
NETADAPT = {
    "space": {"name": "channels", "options": {"include": ["layer3*"], "widths": [0.5, 1.0]}},
    "strategy": {"name": "netadapt", "resource": "macs", "target": 0.9, "delta": 0.05},
    "evaluator": {"kind": "finetune", "seed_train": {"epochs": 1}, "steps": 2},
    "keep": 9,
}


def searched(folder: Path, search: dict[str, Any], **sections: Any) -> Path:
    recipe = {
        "version": 1,
        "name": "weights",
        "data": {"name": "digits", "image_size": 8, "limit_train": 100, "limit_test": 50, "batch_size": 20},
        "search": search,
        **sections,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run(folder / "recipe.yaml", out=folder / "run", device="cpu").directory


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "stages" / "01-search" / "best1.safetensors")


@pytest.mark.parametrize("keep", [True, False])
def test_the_winner_keeps_the_weights_of_its_evaluation_where_they_were_kept(keep: bool, tmp_path: Path) -> None:
    evaluator = {**TRAIN["evaluator"], "keep_weights": keep}  # type: ignore[dict-item]
    directory = searched(tmp_path, {**TRAIN, "evaluator": evaluator})
    assert (directory / "stages" / "01-search" / "best1.safetensors").is_file() == keep
    if keep:
        state = Bundle.load(directory).model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in weights(directory).items())


def test_netadapts_winner_is_its_last_network_fine_tuned_and_the_seed_comes_last(tmp_path: Path) -> None:
    directory = searched(tmp_path, NETADAPT, model={"source": "builtin", "name": "cifar_resnet20"})
    state = Bundle.load(directory).model.state_dict()
    found = weights(directory)
    assert all(torch.equal(state[name], value) for name, value in found.items())
    whole = load_file(sorted((directory / "stages" / "01-search").glob("best*.safetensors"))[-1])
    assert whole["layer3.0.conv1.weight"].shape[0] == 64
    assert any(value.shape != whole[name].shape for name, value in found.items())
    assert not list((directory / "evaluations").rglob("*.safetensors"))  # nothing else stays
