"""Tables of true values: whose rows they are is found out, what does not fit is one sentence; logs survive a kill."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from compress.core.errors import InputError
from evaluators.tasks import DEFAULT
from search.supernets.rank_table import ArchitectureLog, Truth, read_truth
from spaces.registry import create, open_preset
from spaces.space import Space


def read(folder: Path, space: Space, text: str, **options: object) -> Truth:
    path = folder / "table.csv"
    path.write_text(text)
    return read_truth(str(path), space, DEFAULT, **options)  # type: ignore[arg-type]


def test_a_column_per_decision(tmp_path: Path) -> None:
    space = create("nas_bench_macro", {"depths": [1, 1, 1]})
    rows = ["mb3_k3,identity,mb6_k5", "mb6_k5,mb6_k5,mb6_k5", "identity,identity,mb3_k3"]
    text = "top1,layer1,layer2,layer3\n" + "".join(f"{80 + place},{row}\n" for place, row in enumerate(rows))
    found = read(tmp_path, space, text)
    assert (found.metric, found.direction) == ("top1", "maximize")
    first = {"layer1": "mb3_k3", "layer2": "identity", "layer3": "mb6_k5"}
    assert found.values[space.canonical(space.check(first))] == 80


def test_columns_in_the_order_of_the_decisions_whatever_they_are_called(tmp_path: Path) -> None:
    space = create("nats_size", {})
    found = read(tmp_path, space, "c1,c2,c3,c4,c5,accuracy\n8,8,8,8,16,70\n64,8,8,8,8,75\n64,64,8,8,8,80\n")
    assert found.metric == "accuracy"
    assert found.values[space.parse("8:8:8:8:16")] == 70


@pytest.mark.parametrize(
    ("header", "codes", "options"),
    [
        ("name,bits,value", ["a,0100100000", "b,0010010000", "c,0000010001"], {}),
        ("name,lengths,value", ['a,"[1, 3, 6]"', 'b,"[2, 3, 5]"', 'c,"[5, 4, 1]"'], {}),
        ("x,y,z,value", ["1,3,6", "2,3,5", "5,4,1"], {"code": ["x", "y", "z"]}),
    ],
)
def test_codes_are_found_by_what_they_hold(
    header: str, codes: list[str], options: dict[str, list[str]], tmp_path: Path
) -> None:
    space = create("pooling", {})
    text = header + "\n" + "".join(f"{code},{place}\n" for place, code in enumerate(codes))
    assert [space.to_code(arch) for arch in read(tmp_path, space, text, **options).values] == [
        [1, 3, 6],
        [2, 3, 5],
        [5, 4, 1],
    ]


def test_rows_of_the_same_network_count_as_their_mean(tmp_path: Path) -> None:
    space = create("nas_bench_201", {})
    dead = "|none~0|+|none~0|{}~1|+|none~0|none~1|none~2|"  # node 1 gets nothing, whatever follows
    live = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    other = "|nor_conv_3x3~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|"
    rows = [(dead.format("none"), 10), (dead.format("none"), 20), (live, 60), (other, 70)]
    found = read(tmp_path, space, "arch,acc\n" + "".join(f"{arch},{value}\n" for arch, value in rows))
    assert sorted(found.values.values()) == [15, 60, 70] and found.rows == 4


def test_the_task_says_which_way_a_metric_is_better_unless_told(tmp_path: Path) -> None:
    space = create("nats_size", {})
    text = "c1,c2,c3,c4,c5,loss\n8,8,8,8,16,.1\n64,8,8,8,8,.2\n64,64,8,8,8,.3\n"
    assert read(tmp_path, space, text).direction == "minimize"
    assert read(tmp_path, space, text, direction="maximize").direction == "maximize"


@pytest.mark.parametrize(
    ("column", "way"),
    [
        ("val_loss", "minimize"),
        ("test error", "minimize"),
        ("err", "minimize"),
        ("terror", "maximize"),
        ("acc", "maximize"),
    ],
)
def test_losses_and_errors_are_better_where_they_are_small(column: str, way: str, tmp_path: Path) -> None:
    space = create("nats_size", {})
    assert read(tmp_path, space, GOOD.replace("acc", column)).direction == way


def test_columns_called_as_another_decision_are_not_taken_by_their_place(tmp_path: Path) -> None:
    """One misspelt column, and the others in an order of their own: rows would be read as other networks."""
    text = "block5,block4,third,block2,block1,acc\n8,8,8,8,16,70\n64,8,8,8,8,75\n64,64,8,8,8,80\n"
    with pytest.raises(InputError, match="no column block3, and none that holds codes"):
        read(tmp_path, create("nats_size", {}), text)


GOOD = "c1,c2,c3,c4,c5,acc\n8,8,8,8,16,70\n64,8,8,8,8,75\n64,64,8,8,8,80\n"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (GOOD.replace("64,64,8", "64,65,8"), {}, r"table.csv:4: .*65"),
        (GOOD.replace("75", ""), {}, r"table.csv:3: acc: no number"),
        (GOOD.replace("75", "high"), {"metric": "acc"}, r"table.csv:3: acc: not a number; got 'high'"),
        (GOOD.replace("75", "inf"), {"metric": "acc"}, r"table.csv:3: acc: not a finite number"),
        (GOOD.replace("75", "75%"), {}, r"table.csv:3: acc: not a number; got '75%'"),
        (GOOD, {"metric": "ac"}, r"no column 'ac'; allowed: c1, .*did you mean 'acc'"),
        (GOOD, {"code": ["c9"]}, r"no column 'c9'"),
        (GOOD, {"code": ["c1", "c2"]}, r"table.csv:2: .*five numbers"),
        (GOOD.rsplit("\n", 2)[0] + "\n", {}, r"2 different network\(s\); at least 3"),
        (GOOD.replace("acc", "one").replace("\n", ",1\n").replace("e,1", "e,two"), {}, r"rank.metric: one, two"),
        ("width,acc\n3,70\n4,71\n5,72\n", {}, r"no column block1, block2, .* there are width, acc"),
        ("c1\n", {}, r"a header and at least one row"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_one_sentence(
    text: str, options: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path, create("nats_size", {}), text, **options)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["mobilenetv3", "hytra", "nas_bench_macro", "pooling"])
def test_a_log_reads_back_what_was_entered(name: str, tmp_path: Path) -> None:
    space = open_preset("mobilenetv3", "tiny")[0] if name == "mobilenetv3" else create(name, {})
    log = ArchitectureLog(tmp_path / "log.csv", space, ("top1", "macs"))
    generator = random.Random(0)
    for place in range(8):
        log.add(space.canonical(space.sample(generator)), {"top1": generator.random(), "macs": float(place)})
    again = ArchitectureLog(tmp_path / "log.csv", space, ("top1", "macs"))
    assert again.found == log.found
    truth = read_truth(str(tmp_path / "log.csv"), space, DEFAULT)
    assert dict(truth.values) == {arch: metrics["top1"] for arch, metrics in log.found.items()}


def test_a_row_that_a_kill_cut_short_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    space, path = create("nats_size", {}), tmp_path / "log.csv"
    first, second = space.parse("8:8:8:8:16"), space.parse("64:8:8:8:8")
    log = ArchitectureLog(path, space, ("loss",))
    log.add(first, {"loss": float("nan")})
    log.add(second, {"loss": float("inf")})
    whole = path.read_text()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        again = ArchitectureLog(path, space, ("loss",))
        assert len(again.found) == max(0, whole[:length].count("\n") - 1)
        again.add(second, {"loss": 1.5})
        assert ArchitectureLog(path, space, ("loss",)).found[second] == {"loss": 1.5}
    path.write_text("something,else\n1,2\n")
    with pytest.raises(InputError, match="holds something else"):
        ArchitectureLog(path, space, ("loss",))
