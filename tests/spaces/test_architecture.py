from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest

from spaces.architecture import Architecture, Decision, either, where


def test_architectures_with_the_same_choices_are_one_key_whatever_their_order() -> None:
    first, second = Architecture({"depth": 2, "op": "conv"}), Architecture({"op": "conv", "depth": 2})
    assert first == second and hash(first) == hash(second) and len({first, second}) == 1
    assert first != Architecture({"depth": 3, "op": "conv"})
    assert first == {"depth": 2, "op": "conv"}


def test_an_architecture_does_not_follow_the_mapping_it_was_made_from() -> None:
    choices = {"depth": 2}
    arch = Architecture(choices)
    choices["depth"] = 3
    assert arch["depth"] == 2
    with pytest.raises(TypeError):
        arch["depth"] = 3  # type: ignore[index]


def test_json_gives_back_the_same_architecture_with_the_same_types() -> None:
    arch = Architecture({"flag": True, "depth": 2, "ratio": 0.25, "op": "conv"})
    again = Architecture(json.loads(arch.to_json()))
    assert again == arch
    assert [type(choice) for choice in again.values()] == [bool, int, float, str]


def test_a_pickle_is_found_in_a_set_of_another_process() -> None:
    """Texts hash differently in every process, so a pickle must not bring its hash along."""
    arch = Architecture({"op": "conv", "depth": 2})
    hash(arch)
    script = (
        "import pickle, sys; from spaces.architecture import Architecture\n"
        "arch = pickle.load(sys.stdin.buffer)\n"
        "assert arch in {Architecture({'op': 'conv', 'depth': 2})}"
    )
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script], input=pickle.dumps(arch), check=True, env=environment)


def test_typed_getters_return_numbers_and_texts() -> None:
    arch = Architecture({"depth": 2, "op": "conv"})
    assert arch.number("depth") == 2 and arch.text("op") == "conv"
    with pytest.raises(AssertionError):
        arch.number("op")


def test_a_truth_value_is_not_a_number_but_a_whole_float_is() -> None:
    assert Decision("d", (1, 2)).index(True) == -1
    assert Decision("d", (False, True)).index(1) == -1
    assert Decision("d", (1, 2)).index(2.0) == 1
    assert Decision("d", (0.5, 1.0)).index(1) == 1
    assert Decision("d", ("1", "2")).index(1) == -1
    assert Decision("d", (1, 2)).index([1]) == -1


def test_where_holds_for_the_named_choices_and_not_where_the_decision_is_not_taken() -> None:
    condition = where("depth", 3, 4)
    assert condition.reads == ("depth",) and condition.text == "where depth is 3 or 4"
    assert condition.holds({"depth": 4}) and not condition.holds({"depth": 2}) and not condition.holds({})


def test_choices_are_listed_as_one_would_say_them() -> None:
    assert either((3,)) == "3" and either((3, 4)) == "3 or 4" and either(("a", 2, True)) == "a, 2 or True"
