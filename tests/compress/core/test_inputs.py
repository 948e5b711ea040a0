import pytest
import torch

import compress
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.inputs import Description, ModelInputs
from compress.core.problems import validated
from compress.core.tensors import tensors_in


class Section(Config):
    inputs: Description | None = None


def described(value):
    return ModelInputs.of(validated(Section, {"inputs": value}).inputs)


IMAGE = {"shape": [3, 8, 6], "dynamic": {2: "height", 3: "width"}}
STEP = {"shape": [], "dtype": "int64", "low": 5, "high": 7}


def test_keyword_arguments_are_drawn_by_name_and_the_same_each_time():
    inputs = described({"x": IMAGE, "t": STEP, "table": {"shape": [4, 2], "low": 2, "high": 3, "batched": False}})
    first, again, other = inputs.draw(4), inputs.draw(4), inputs.draw(4, seed=1)
    assert {name: tuple(each.shape) for name, each in first.items()} == {"x": (4, 3, 8, 6), "t": (4,), "table": (4, 2)}
    assert [each.dtype for each in first.values()] == [torch.float32, torch.int64, torch.float32]
    assert all(torch.equal(first[name], again[name]) for name in first) and not torch.equal(first["x"], other["x"])
    steps = inputs.draw(200)["t"]
    assert set(steps.tolist()) == {5, 6} and 2 <= first["table"].min() < first["table"].max() <= 3
    assert all(int(inputs.draw(2, seed=seed)["t"].max()) == 6 for seed in range(9))  # a table of 6 rows is too small
    larger = inputs.draw(1, open_sizes={"height": 16})
    assert tuple(larger["x"].shape) == (1, 3, 16, 6) and inputs.open_sizes == {"height": 8, "width": 6}
    assert str(inputs) == "x 3x8x6, t int64 one number, table 4x2 (no batch)"


def test_positional_arguments_and_lists_of_tensors():
    two = described([{"shape": [2, 5]}, {"shape": [7], "dtype": "bool"}])
    assert isinstance(two.draw(1), tuple) and list(two.named()) == ["input_0", "input_1"]
    assert set(two.draw(50)[1].flatten().tolist()) == {False, True}
    one = described([{"shape": [2, 5]}])
    assert isinstance(one.draw(1), torch.Tensor) and list(one.named("images")) == ["images"]
    pyramid = described({"levels": [{"shape": [2, 8, 8]}, {"shape": [2, 4, 4]}]})
    assert list(pyramid.named()) == ["levels_0", "levels_1"] and isinstance(pyramid.draw(1)["levels"], list)
    alone = described([[{"shape": [2, 8, 8]}, {"shape": [2, 4, 4]}]])
    assert isinstance(alone.draw(1), list) and len(list(tensors_in(alone.draw(1)))) == 2


def test_dictionaries_nested_lists_and_values_that_are_no_tensors():
    value = {"batch": {"images": [IMAGE, None], "step": STEP}, "mask": None, "twice": True, "mode": "sum"}
    drawn = described(value).draw(2)
    assert list(described(value).named()) == ["batch_images_0", "batch_step"]
    assert tuple(drawn["batch"]["images"][0].shape) == (2, 3, 8, 6) and drawn["batch"]["images"][1] is None
    assert drawn["mask"] is None and drawn["twice"] is True and drawn["mode"] == "sum"
    alone = described([{"low": IMAGE, "shape": STEP}])  # names that descriptions have, too
    assert isinstance(alone.draw(1), tuple) and set(alone.draw(1)[0]) == {"low", "shape"}


@pytest.mark.parametrize(("kind", "least", "most"), [("uint8", 0, 255), ("int8", -128, 127), ("bool", 0, 1)])
def test_small_types_need_no_range(kind, least, most):
    values = described([{"shape": [4000], "dtype": kind}]).draw(1).long()
    assert (int(values.min()), int(values.max())) == (least, most)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"x": {"shape": [3], "dtype": "int65"}}, 'x.dtype: unknown value; got "int65"; allowed float32, .* did you'),
        ({"x": {"shape": [3], "dtype": "int64"}}, "x: high: int64 needs the first number that is too large"),
        ({"x": {"shape": [3], "low": 2, "high": 1}}, "x: low must be below high; got 2 and 1"),
        ({"x": {"shape": [3], "low": 2}}, "x: low and high belong together"),
        (
            {"x": {"shape": [3], "dtype": "int8", "high": 1.5}},
            "low and high of int8 are whole numbers; got None and 1",
        ),
        (
            {"x": {"shape": [3], "dynamic": {2: "width"}}},
            "dynamic: there is no dimension 2; allowed: 1 to 1 .0 is",
        ),
        ({"x": {"shape": [3], "dynamic": {1: "batch"}}}, "batch is what files call the first dimension"),
        ({"x": {"shape": [3], "dynamic": {1: "a b"}}}, "x.dynamic"),
        ({"x": {"shape": [3, 4], "dynamic": {1: "a", 2: "a"}}}, "dynamic: a is 3 in one place and 4 in another"),
        ({"shape": [3]}, r"one input is a list of one, \[{shape: ...}\], or has its name"),
        ({"x": {"dtype": "int8"}}, "x.shape: missing|x.shape"),
        ([], "inputs"),
        ({"x": [3, 64, 64]}, "none of the arguments is a tensor, which is written {shape: .3, 64, 64.}"),
        (
            {"x": {"a": {"shape": [3], "dtyp": "int8"}}},
            "x.a.dtyp: unknown key; allowed batched, .* 'dtype'",
        ),
        ({"x": {"a": {"shape": [3]}, "b": {"dtype": "int8"}}}, "x.b.shape: required, but missing: sizes of one"),
    ],
)
def test_what_is_wrong_is_one_sentence(value, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        described(value)
    assert len(error.value.problems) == 1


def test_inputs_of_data_are_held_against_the_description():
    inputs = described({"x": IMAGE, "t": STEP})
    assert inputs.misfit(inputs.draw(5)) is None and inputs.misfit(inputs.draw(2, open_sizes={"width": 9})) is None
    x, t = torch.rand(2, 3, 8, 6), torch.tensor([5, 6])
    assert inputs.misfit((x, t)) == "are given by name, and the data gives them in order"
    assert inputs.misfit({"x": x, "step": t}) == "are x, t; the data gives x, step"
    assert inputs.misfit({"x": x[:, :1], "t": t}) == "have x of float32 3x8x6; the data gives float32 1x8x6 a sample"
    assert inputs.misfit({"x": x, "t": t / 2}) == (
        "have t of int64 one number; the data gives float32 one number a sample"
    )
    assert described([{"shape": [3, 8, 6]}]).misfit(x) is None


class Masked(torch.nn.Module):
    """Refuses a mask that is below 0 anywhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv1d(3, 16, 1), torch.nn.Conv1d(16, 2, 1)

    def forward(self, x, mask):
        if bool((mask < 0).any()):
            raise ValueError("a mask is not below 0")
        return self.b(self.a(x).relu() * mask[:, None])


def test_plans_keep_the_values_of_masks_beside_other_inputs():
    example = {"x": torch.randn(1, 3, 8), "mask": torch.ones(1, 8)}
    small = compress.apply(compress.plan(Masked(), example, ratio=0.5, criterion="magnitude", align=1), Masked())
    assert small.a.out_channels == 8
