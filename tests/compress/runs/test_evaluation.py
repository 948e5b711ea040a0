"""Accuracy of ONNX files of every kind that turns up."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.bundle import open_model
from compress.core.errors import InputError
from compress.runs.evaluation import evaluate_file
from compress.runs.recipe import load_recipe

RECIPE = """
version: 1
name: eval
model: {source: builtin, name: cifar_resnet20}
data: {name: digits, limit_test: 60, eval_batch_size: 25}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.yaml")


def classifier(path, shape=("n", 3, 32, 32), kind=TensorProto.FLOAT, nodes=(), inputs=1):
    """Write a linear classifier of images (N, C, H, W), of 32 x 32 pixels where the shape leaves them open."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    pixels = [size if isinstance(size, int) else 32 for size in shape[1:]]
    weight = 0.01 * np.random.default_rng(0).standard_normal((np.prod(pixels), 10))
    steps = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"]), *nodes]
    taken = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "other")[:inputs]]
    last = steps[-1].output[0]
    given = helper.make_tensor_value_info(last, TensorProto.INT64 if nodes else kind, None)
    graph = helper.make_graph(steps, "g", taken, [given], [numpy_helper.from_array(weight.astype(dtype), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (("n", 3, 32, 32), TensorProto.FLOAT),
        (("n", 3, 32, 32), TensorProto.FLOAT16),
        (("n", 3, 32, 32), TensorProto.DOUBLE),
        (("n", 1, 32, 32), TensorProto.FLOAT),
        (("n", 3, 16, 16), TensorProto.FLOAT),
        (("n", 1, 24, 40), TensorProto.FLOAT16),
        ((7, 3, 32, 32), TensorProto.FLOAT),
        (("n", 3, "h", "w"), TensorProto.FLOAT),
    ],
    ids=["usual", "half", "double", "grey", "small", "rectangular", "fixed batch", "open sizes"],
)
def test_images_are_fitted_to_the_file(tmp_path, recipe, shape, kind):
    found = evaluate_file(classifier(tmp_path / "model.onnx", shape, kind), recipe)
    assert found["images"] == 60 and 0 <= found["top1"] <= 100 and found["loss"] > 0


def test_a_file_is_held_against_the_classes_of_the_bundle_beside_it(tmp_path, recipe):
    file = classifier(tmp_path / "model.onnx")
    bundle = open_model(recipe.model, recipe.data).bundle
    bundle.class_names = ["1", "0", *bundle.class_names[2:]]
    bundle.save(tmp_path / "bundle")
    with pytest.raises(InputError, match="class 0 is '0' in the data and '1' in the bundle"):
        evaluate_file(file, recipe)


def test_half_precision_agrees_with_single(tmp_path, recipe):
    single, half = (
        evaluate_file(classifier(tmp_path / f"{kind}.onnx", kind=kind), recipe)
        for kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )
    assert half["loss"] == pytest.approx(single["loss"], rel=1e-2)
    assert half["top1"] == pytest.approx(single["top1"], abs=2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": ("n", 4, 32, 32)}, "has 4 channels; images give 1 or 3"),
        ({"kind": TensorProto.UINT8}, r"its input is a tensor\(uint8\); the data gives float32"),
        ({"inputs": 2}, r"takes 2 inputs \(x, other\); the data gives one"),
        ({"nodes": [helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0)]},
         r"its output 'best' is int64 of shape \(25,\) for 25 samples; logits \(N, classes\) are needed"),
    ],
)  # fmt: skip
def test_a_file_that_images_do_not_fit_is_one_sentence(tmp_path, recipe, changes, says):
    if changes.get("kind") == TensorProto.UINT8:
        path = tmp_path / "model.onnx"
        ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", 3, 32, 32]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    else:
        path = classifier(tmp_path / "model.onnx", **changes)
    with pytest.raises(InputError, match=says) as caught:
        evaluate_file(path, recipe)
    assert "\n" not in str(caught.value)


def test_a_file_without_inputs_is_one_sentence(tmp_path, recipe):
    path = tmp_path / "bare.onnx"
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph([helper.make_node("RandomNormal", [], ["y"], shape=[1, 10])], "g", [], [end])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    with pytest.raises(InputError, match="takes no inputs, so it answers nothing about the data"):
        evaluate_file(path, recipe)


def test_sizes_that_only_the_run_finds_wrong_are_one_sentence(tmp_path, recipe):
    path = classifier(tmp_path / "model.onnx", ("n", 3, "h", "w"))
    small = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": 48})})
    with pytest.raises(InputError, match=r"does not run on images \(25, 3, 48, 48\): ") as caught:
        evaluate_file(path, small)
    assert "\n" not in str(caught.value)


def test_weights_beside_the_real_file_are_found_through_a_link(tmp_path, recipe):
    (tmp_path / "store").mkdir()
    model = onnx.load(classifier(tmp_path / "store" / "plain.onnx"))
    expected = evaluate_file(tmp_path / "store" / "plain.onnx", recipe)
    onnx.save_model(model, tmp_path / "store" / "real.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "link.onnx").symlink_to(tmp_path / "store" / "real.onnx")
    assert evaluate_file(tmp_path / "link.onnx", recipe) == expected
