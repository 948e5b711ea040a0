"""ONNX files whose parts are scattered by symbolic links."""

import shlex
import sys

import numpy as np
import onnx
import pytest

from compress.core.errors import InputError
from compress.core.onnx_parts import parts, together
from evaluators.latency.measure import LatencyConfig, compare, measure
from evaluators.latency.targets.command import CommandTarget
from evaluators.latency.width_multiple import conv_chain

QUICK = LatencyConfig(seconds=0, max_seconds=1)
BY_COMMAND = QUICK.model_copy(update={"target": CommandTarget(command=f"{shlex.quote(sys.executable)} -")})


@pytest.fixture
def plain(tmp_path):
    """An ONNX file with its weights in a folder below it."""
    folder = tmp_path / "real"
    (folder / "weights").mkdir(parents=True)
    onnx.save_model(
        onnx.load(conv_chain(16, tmp_path)), folder / "model.onnx",
        save_as_external_data=True, location="weights/w.bin", size_threshold=0,
    )  # fmt: skip
    return folder / "model.onnx"


def linked(plain, how):
    """Return the path of a link to `plain`."""
    place = plain.parent.parent / "links"
    place.mkdir()
    link = place / "model.onnx"
    if how == "file":  # the weights are beside the real file
        link.symlink_to(plain)
    elif how == "chain":
        (place / "between.onnx").symlink_to("../real/model.onnx")
        link.symlink_to("between.onnx")
    elif how == "folder":
        (place / "way").symlink_to(plain.parent)
        return place / "way" / "model.onnx"
    else:  # each by itself, as in a cache of files named by their content
        blobs = plain.parent.parent / "blobs"
        (place / "weights").mkdir()
        blobs.mkdir()
        plain.rename(blobs / "a1")
        (plain.parent / "weights" / "w.bin").rename(blobs / "b2")
        link.symlink_to(blobs / "a1")
        (place / "weights" / "w.bin").symlink_to(blobs / "b2")
    return link


@pytest.mark.parametrize("how", ["file", "chain", "folder", "each"])
def test_a_linked_file_is_timed_and_compared(plain, tmp_path, how):
    link = linked(plain, how)
    assert list(parts(link)) == ["model.onnx", "weights/w.bin"]
    assert measure(link, QUICK)["runs"] >= 100
    assert measure(link, BY_COMMAND)["runs"] >= 100
    assert compare(link, conv_chain(16, tmp_path), QUICK)["median"] > 0
    with together(link) as file:
        assert not file.is_symlink() and (file.parent / "weights" / "w.bin").is_file()


def test_nothing_is_copied_where_all_lies_together(plain):
    with together(plain) as file:
        assert file == plain.resolve()


def test_weights_that_are_absent_or_elsewhere_are_named(plain):
    (plain.parent / "weights" / "w.bin").unlink()
    with pytest.raises(InputError, match=r"its weights are in .*w\.bin, which is not there"):
        parts(plain)
    model = onnx.load(plain, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../secret"
    plain.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"'\.\./secret'; allowed: a place below"):
        parts(plain)


def test_weights_within_the_branches_of_a_condition_are_found(tmp_path):
    value = onnx.numpy_helper.from_array(np.ones(3, np.float32), "v")
    onnx.external_data_helper.set_external_data(value, "inner.bin")
    value.ClearField("raw_data")
    value.data_location = onnx.TensorProto.EXTERNAL
    end = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])
    nodes = [onnx.helper.make_node("Identity", ["v"], ["y"])]
    branch = onnx.helper.make_graph(nodes, "branch", [], [end], [value])
    choose = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    start = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    path = tmp_path / "if.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([choose], "g", [start], [end])).SerializeToString())
    with pytest.raises(InputError, match=r"inner\.bin, which is not there"):
        parts(path)
