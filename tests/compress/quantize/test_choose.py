"""The fastest file that is good enough is kept, or the float one; what does not stand integers stays float."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.core.errors import InputError
from compress.quantize.config import QuantizeConfig
from compress.quantize.details import details_of, verdict
from compress.quantize.images import images_of
from compress.quantize.judge import drop, judge
from compress.quantize.sensitivity import Sensitive, least_left


def test_a_fast_and_good_file_is_kept_and_runs_as_integers(trained, tmp_path, timed_as):
    timed_as(2.0)
    choice = trained.choice(tmp_path, most=1.0)
    kept, tried = choice.run()
    assert kept is not None and kept.way.method == "static"
    assert kept.integer == len(choice.source.layers)
    assert drop(choice.task, choice.before, judge(kept.file, choice.images.judged, choice.task)) <= 1.0
    assert "is kept" in verdict(choice, kept, tried)


def test_what_is_not_clearly_faster_is_not_kept(trained, tmp_path, timed_as):
    timed_as(1.04)
    choice = trained.choice(tmp_path, most=5.0, judged=40)
    kept, tried = choice.run()
    assert kept is None
    assert "the float file stays" in verdict(choice, kept, tried)
    assert "1.05× is needed" in verdict(choice, kept, tried)


@pytest.fixture
def spoilt(trained, tmp_path):
    """The same function in floats, but one layer's input has a channel a thousand times as large as the others."""
    model = onnx.load(trained.file)
    weights = {each.name: each for each in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    layers = {layer.name: nodes[layer.node] for layer in trained.source(tmp_path).layers}
    first, second = layers["stages.0.0.units.0.conv"], layers["stages.0.0.units.1.conv"]
    wanted = 3000.0
    for name, where in ((first.input[1], 0), (first.input[2], 0)):
        value = numpy_helper.to_array(weights[name]).copy()
        value[where] *= wanted
        weights[name].CopyFrom(numpy_helper.from_array(value, name))
    value = numpy_helper.to_array(weights[second.input[1]]).copy()
    value[:, 0] /= wanted
    weights[second.input[1]].CopyFrom(numpy_helper.from_array(value, second.input[1]))
    onnx.save(model, tmp_path / "spoilt.onnx")
    return tmp_path / "spoilt.onnx"


def test_the_layer_that_does_not_stand_integers_is_found_and_left_float(trained, spoilt, tmp_path, timed_as):
    timed_as(2.0)
    choice = trained.choice(tmp_path, spoilt, most=1.0, method="static")
    images, task = choice.images.judged, choice.task
    assert judge(spoilt, images, task).agreement(judge(trained.file, images, task)) == 100
    kept, tried = choice.run()
    assert kept is not None
    assert kept.sensitive
    details = details_of(choice, kept, tried)
    assert any(name.startswith("stages.0.0.") for name in details["left_float"])
    assert len(kept.left) < len(kept.sensitive) / 2
    assert drop(task, choice.before, judge(kept.file, images, task)) <= 1.0


def test_where_no_layer_can_be_left_float_the_float_file_stays(trained, spoilt, tmp_path, timed_as, monkeypatch):
    def failing(*args):
        raise RuntimeError("no such node")

    timed_as(2.0)
    monkeypatch.setattr("compress.quantize.choose.scan", failing)
    choice = trained.choice(tmp_path, spoilt, most=1.0, method="static")
    kept, tried = choice.run()
    assert kept is None
    assert "onnxruntime's quantizer fails on it: no such node" in verdict(choice, kept, tried)


def test_the_shortest_list_that_is_good_enough_is_found():
    sensitive = [Sensitive(str(number), str(number), 1.0 / (1 + number)) for number in range(20)]
    asked = []

    def judged(left):
        asked.append(len(left))
        return len(left)

    for needed in range(1, 20):
        asked.clear()
        left = least_left(sensitive, judged, lambda found, needed=needed: found >= needed)
        assert left == [str(number) for number in range(needed)]
        assert len(asked) <= 5
    assert least_left(sensitive, judged, lambda found: False) is None


def test_excluded_layers_stay_float(trained, tmp_path, timed_as):
    timed_as(2.0)
    choice = trained.choice(tmp_path, most=5.0, judged=40, exclude=("stages.0",))
    kept, tried = choice.run()
    assert kept is not None
    left = details_of(choice, kept, tried)["left_float"]
    assert left and all(name.startswith("stages.0.") for name in left)
    assert kept.integer == len(choice.source.layers) - len(left)


def test_images_to_calibrate_and_to_judge_are_apart_and_the_same_every_time(trained):
    config = QuantizeConfig(calibration=100, judged=300)
    first, again = images_of(trained.data, config, 3), images_of(trained.data, config, 3)

    def rows(loader):
        return np.concatenate([batch.inputs.flatten(1).numpy() for batch in loader.batches()])

    calibration, judged = rows(first.calibration), rows(first.judged)
    assert (len(calibration), len(judged)) == (100, 300)
    assert np.array_equal(calibration, rows(again.calibration)) and np.array_equal(judged, rows(again.judged))
    training = {row.tobytes() for row in rows(trained.data.train)}
    both = [row.tobytes() for row in (*calibration, *judged)]
    assert training.issuperset(both)
    assert len(set(both)) == 400


def test_all_that_is_left_judges_where_more_is_asked_for(trained):
    found = images_of(trained.data, QuantizeConfig(calibration=700, judged=2000), 0)
    assert (found.calibration.num_samples, found.judged.num_samples) == (700, 100)


@pytest.mark.parametrize("config", [{"types": "fp16"}, {"method": "dynamic"}])
def test_what_needs_no_ranges_takes_no_images_for_them(trained, config):
    few = replace(trained.data, train=images_of(trained.data, QuantizeConfig(judged=100), 0).judged)
    found = images_of(few, QuantizeConfig(**config), 0)
    assert found.calibration is None and found.judged.num_samples == 100


def test_more_images_than_there_are_is_a_sentence(trained):
    with pytest.raises(InputError, match=r"quantize.calibration: .*got 800; allowed 1 to 799"):
        images_of(trained.data, QuantizeConfig(calibration=800), 0)
