from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from typer.testing import CliRunner

from compress.cli import app
from evaluators.cost import count_params
from spaces.registry import create, read_architecture, spaces

SPACE = "nas_bench_macro"


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["space", *map(str, arguments)])


def answer(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ls_lists_the_spaces() -> None:
    assert CliRunner().invoke(app, ["ls", "spaces"]).stdout.split() == spaces.names()
    found = CliRunner().invoke(app, ["ls", "spaces", "nas*", "--json"]).stdout
    assert SPACE in json.loads(found) and all(name.startswith("nas") for name in json.loads(found))


def test_a_space_shows_options_decisions_count_and_presets() -> None:
    text = invoke(SPACE).stdout
    assert text.startswith(f"{SPACE}: ")
    for words in ("built for 10 classes, images of 3 x 32 x 32", "depths", "layer1–8", "6561 architectures", "best"):
        assert words in text
    facts = answer(SPACE, "--set", "depths=[1, 1]")
    assert facts["count"] == 9
    assert facts["options"]["depths"]["value"] == [1, 1]
    assert [each["name"] for each in facts["decisions"]] == ["layer1", "layer2"]
    assert facts["decisions"][0]["taken"] == "always"


def test_conditions_are_part_of_the_description() -> None:
    assert "where stage2–6.depth is 3 or 4" in invoke("mobilenetv3").stdout


def test_count_is_exact_and_told_in_short() -> None:
    assert invoke("mobilenetv3", "--preset", "ofa", "--count").stdout == "21758655492572485851  2.18e19\n"
    assert answer("mobilenetv3", "--count") == {"space": "mobilenetv3", "count": 21758655492572485851}
    assert invoke("pooling", "--count").stdout == "36\n"
    assert invoke(SPACE, "--preset", "best", "--count", "--set", "depths=[4, 4]").stdout == "6561\n"


def test_an_architecture_shows_code_choices_layers_and_cost() -> None:
    text = invoke(SPACE, "--preset", "best").stdout
    assert "code  22212220" in text
    assert "mbconv k5 e6" in text
    assert text.rstrip().splitlines()[-1].startswith("params 1.99 M (1,985,514)  MACs 85.2 M")
    facts = answer(SPACE, "--preset", "best", "--classes", "100", "--channels", "1", "--size", "48")
    assert facts["task"] == {"classes": 100, "channels": 1, "size": 48}
    module = create(SPACE).build(facts["choices"], create(SPACE).task(100, 1, 48))
    assert facts["params"] == count_params(module)[0] == sum(layer["params"] for layer in facts["layers"])
    assert facts["layers"][0]["size"] == 48


def test_two_encodings_of_one_network_show_the_same_canonical_choices(folder: Path) -> None:
    found = []
    for code in ("22202222", "22220222"):
        Path("code.json").write_text(json.dumps(code))
        found.append(answer(SPACE, "--arch", "code.json"))
    assert found[0]["choices"] != found[1]["choices"]
    assert found[0]["canonical"] == found[1]["canonical"]


def test_samples_follow_the_seed_and_come_back_from_their_file(folder: Path) -> None:
    first = answer(SPACE, "--sample", "--seed", "3", "--save", "a.json")
    assert first["choices"] == answer(SPACE, "--sample", "--seed", "3")["choices"]
    assert first["choices"] != answer(SPACE, "--sample", "--seed", "4")["choices"]
    assert first["saved"] == "a.json"
    assert answer(SPACE, "--arch", "a.json")["choices"] == first["choices"]
    assert dict(read_architecture("a.json")[1]) == first["choices"]


def test_a_preset_that_only_sets_options_can_be_sampled(folder: Path) -> None:
    small = answer("mobilenetv3", "--preset", "tiny", "--sample", "--save", "tiny.json")
    assert small["options"] == answer("mobilenetv3", "--preset", "tiny", "--arch", "tiny.json")["options"] != {}


def test_export_is_checked_against_the_module_and_says_so(folder: Path) -> None:
    flags = ["--set", "depths=[1]", "--sample", "--classes", "4", "--size", "16", "--export", "a.onnx", "--quiet"]
    result = invoke(SPACE, *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    words = result.stdout.splitlines()[-1].split()
    assert words[0] == "a.onnx"
    assert 0 <= float(words[words.index("parity") + 1]) < 1e-4
    graph = onnx.load("a.onnx").graph
    assert [each.dim_value for each in graph.input[0].type.tensor_type.shape.dim[1:]] == [3, 16, 16]
    assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4


def test_pictures_of_spaces_and_architectures_are_written(folder: Path) -> None:
    for number, flags in enumerate(([], ["--sample"], ["--preset", "best"])):
        path = Path("pictures") / f"{number}.svg"
        assert invoke(SPACE, *flags, "--draw", path).stdout.splitlines()[-1] == str(path)
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        title = next(root.iter("{http://www.w3.org/2000/svg}text")).text or ""
        assert title.startswith(f"{SPACE}  best" if number == 2 else SPACE)


CHOICES = {f"layer{number}": "identity" for number in range(1, 9)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nas_bench_makro"], "did you mean 'nas_bench_macro'?"),
        (["nni:nowhere.Space"], "nowhere"),
        ([SPACE, "--preset", "bset"], "no preset 'bset'; allowed: best; did you mean 'best'?"),
        ([SPACE, "--set", "dephts=[1]"], "option dephts: unknown key; allowed depths, stem; did you mean 'depths'?"),
        ([SPACE, "--set", "stem=0"], "option stem"),
        ([SPACE, "--set", "stem"], "--set"),
        ([SPACE, "--arch", "missing.json"], "missing.json: cannot be read"),
        ([SPACE, "--arch", "."], "cannot be read"),
        ([SPACE, "--arch", "text.json"], "text.json: cannot be read as JSON"),
        ([SPACE, "--arch", "binary.json"], "binary.json: cannot be read"),
        ([SPACE, "--arch", "unknown.json"], "unknown.json: layer9: space nas_bench_macro has no such decision"),
        ([SPACE, "--arch", "choice.json"], "choice.json: layer1: got 'mb9'; allowed identity, mb3_k3 or mb6_k5"),
        (["mobilenetv3", "--arch", "right.json"], "is an architecture of space 'nas_bench_macro'"),
        ([SPACE, "--arch", "right.json", "--sample"], "--arch and --sample both name an architecture"),
        ([SPACE, "--preset", "best", "--sample"], "--preset best is an architecture, and --sample names another"),
        ([SPACE, "--preset", "best", "--arch", "right.json"], "leave one out"),
        ([SPACE, "--count", "--sample"], "--count counts a whole space; leave out --sample"),
        ([SPACE, "--export", "new.onnx"], "--export needs an architecture"),
        ([SPACE, "--save", "new.json"], "--save needs an architecture"),
        ([SPACE, "--sample", "--draw", "new.png"], "written as SVG"),
        ([SPACE, "--sample", "--draw", "/dev/null/new.svg"], "cannot be written"),
        ([SPACE, "--sample", "--save", "."], "is a directory"),
        (["hytra", "--arch", "early.json"], "layer0.operation: got 'attention'"),
        (["pooling", "--arch", "zero.json"], "position 0"),
    ],
)
def test_wrong_input_is_one_sentence_with_exit_code_2_and_nothing_is_written(
    flags: list[str], words: str, folder: Path
) -> None:
    saved = {"space": SPACE, "choices": CHOICES}
    Path("right.json").write_text(json.dumps(saved))
    Path("unknown.json").write_text(json.dumps({**saved, "choices": {**CHOICES, "layer9": "identity"}}))
    Path("choice.json").write_text(json.dumps({**CHOICES, "layer1": "mb9"}))
    Path("text.json").write_text("layer1: identity")
    Path("binary.json").write_bytes(b"\xff\x00\x9f")
    Path("early.json").write_text(json.dumps({"layer0.scale": 3, "layer0.operation": "attention"}))
    Path("zero.json").write_text(json.dumps("1100000000"))
    before = sorted(folder.iterdir())
    draw = [] if "--draw" in flags or "--count" in flags else ["--draw", "picture.svg"]
    result = invoke(*flags, *draw)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert all(len(line) < 400 for line in result.stderr.splitlines())
    assert sorted(folder.iterdir()) == before
