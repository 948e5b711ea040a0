"""`compress inspect --latency`: where the time goes, and what steps of width would save."""

import json
from functools import partial

import pytest
from staircase import CONSTANT, FACTOR, MS, answer_at_once
from typer.testing import CliRunner

from compress.cli import app
from compress.latency_model.build import latency_model
from compress.runs import inspection


@pytest.fixture
def inspect(monkeypatch, tmp_path):
    answer_at_once(monkeypatch, tmp_path)
    monkeypatch.setattr(inspection, "latency_model", partial(latency_model, count=8))

    def run(*arguments):
        return CliRunner().invoke(app, ["inspect", "builtin:cifar_resnet20", "--latency", "--quiet", *arguments])

    return run


def test_layers_add_up_to_the_measured_time_and_steps_are_told(inspect):
    done = inspect("--json", "--set", "latency.threads=2")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["latency"]
    assert told["threads"] == 2
    shortcuts = 2 + 8  # which pad channels: convolutions in the file
    assert told["measured_ms"] == pytest.approx(CONSTANT + FACTOR * MS * (7 + 2 + 4 * 5 + 8 + 16 * 5 + shortcuts))
    assert sum(each["ms"] for each in told["layers"]) + told["rest_ms"] == pytest.approx(told["measured_ms"])
    layers = {each["layer"]: each["ms"] for each in told["layers"]}
    assert layers["layer3.1.conv1"] == pytest.approx(FACTOR * MS * 16, rel=0.01)
    steps = {each["group"]: each["steps"] for each in told["widths"]}
    saved = {each["width"]: each["saves_ms"] for each in steps["layer3.1.conv1:channels"]}
    assert saved == pytest.approx({16: FACTOR * MS * 24, 32: FACTOR * MS * 16, 48: FACTOR * MS * 8}, rel=0.01)
    blocks = {each["block"]: each["saves_ms"] for each in told["blocks"]}
    assert blocks["layer2.1"] == pytest.approx(FACTOR * MS * 8, rel=0.01)


def test_tables_name_layers_groups_and_blocks(inspect):
    text = inspect().stdout
    assert "layer3.1.conv1  " in text
    assert "layer2.1.conv1:channels  16: 0.22" in text
    assert "layer1.0.conv1:channels  no narrower width is faster" in text  # 16 wide, and nothing below is a step


def test_other_providers_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    arguments = ["inspect", "builtin:cifar_resnet20", "--latency", "--quiet", "--set", "latency.provider=XProvider"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "latency.provider" in done.output and "CPUExecutionProvider" in done.output
