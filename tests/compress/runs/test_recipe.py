from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from compress.core.errors import InputError
from compress.runs.catalog import recipes_folder, shipped_recipes
from compress.runs.recipe import differing_keys, load_recipe, recipe_schema
from compress.runs.stage import acts_of

SMALL = "version: 1\nname: small\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: none}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str, tmp_path: Path) -> None:
    values = yaml.safe_load((recipes_folder() / name).read_text())
    overrides = {}
    for section, key in (("data", "path"), ("model", "checkpoint")):
        if values.get(section, {}).get(key):
            (tmp_path / key).touch()
            overrides[f"{section}.{key}"] = str(tmp_path / key)
    if values.get("model", {}).get("source") == "bundle":  # which another recipe leaves
        (tmp_path / "bundle.json").touch()
        overrides["model.name"] = str(tmp_path)
    for teacher, given in values.get("distill", {}).get("teachers", {}).items():
        if given.get("model", {}).get("source") == "bundle":
            (tmp_path / "bundle.json").touch()
            overrides[f"distill.teachers.{teacher}.model.name"] = str(tmp_path)
    recipe = load_recipe(name, overrides)
    assert recipe.name == Path(name).stem
    assert any(recipe.section(section) for section in ("prune", "search", "supernet", "train", "distill", "quantize"))
    if recipe.section("prune"):
        assert recipe.section("export") is not None
        assert recipe.section("latency") is not None
    recipe.save(tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml").sha256() == recipe.sha256()


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe("dimap_swin_channels.yaml", {"train.lr": 1e-5})
    recipe.save(tmp_path / "resolved.yaml")
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again.resolved() == recipe.resolved()
    assert again.sha256() == recipe.sha256()
    written = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert written["seed"] == 0
    assert written["train"]["optimizer"] == "adamw"


def test_every_field_of_a_recipe_is_described() -> None:
    tree = recipe_schema().model_json_schema()
    definitions = {**tree["$defs"], "Recipe": tree}
    missing = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, field in definition.get("properties", {}).items()
        if "description" not in field and "const" not in field
    ]
    assert missing == []


def test_prune_takes_one_section_or_a_list(tmp_path: Path) -> None:
    one = "{kind: weights, criterion: magnitude, sparsity: 0.5}"
    for text, count in ((f"prune: {one}\n", 1), (f"prune: [{one}, {one}]\n", 2), ("", 0)):
        acts = acts_of(load_recipe(write(tmp_path, SMALL + text)))
        assert [act.name for act in acts] == ["dense", *["prune"] * count]
    with pytest.raises(InputError, match="prune"):
        load_recipe(write(tmp_path, SMALL + "prune: []\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SMALL + "finetune: {epochs: 1}\n", "5  finetune: needs images"),
        (SMALL + "latency: {threads: 1}\n", "5  latency: times ONNX files"),
        (SMALL + "latency: {threads: 1}\nexport: null\n", "5  latency: times ONNX files"),
        (SMALL.replace("cifar_resnet20}", "cifar_resnet20, checkpoint: no.pth}"), "3  model.checkpoint: no such file"),
        (SMALL.replace("{name: none}", "{name: npz, path: no.npz}"), "4  data.path: no such file"),
        (
            SMALL.replace("builtin, name: cifar_resnet20", "timm, name: resnet81"),
            "3  model.name: timm has no model 'resnet81'",
        ),
        (SMALL.replace("name: small", "name: ../up"), "2  name: does not fit"),
        (SMALL.replace("version: 1\n", ""), "1  version: required, but missing"),
        (SMALL + "seed: -1\n", "5  seed: out of range"),
        (SMALL + "prune: {kind: weights, criterion: dimapp, sparsity: 0.5}\n", "5  prune.criterion: unknown"),
        (
            SMALL + "prune: {kind: structure, criterion: dimap, budget: {mac: 0.5}}\n",
            "5  prune.budget.mac: unknown key",
        ),
    ],
)
def test_what_a_recipe_cannot_mean_is_found_before_running(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, text))
    assert str(caught.value).splitlines()[0].startswith(f"{tmp_path / 'recipe.yaml'}:{line}")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("source: timm, name: resnet18, kwargs: {features_only: true}", "model.kwargs.features_only: makes a model"),
        ("source: timm, name: resnet18.a1_in2k", "model.name: timm has no weights 'a1_in2k'"),
        ("source: torchvision, name: resnet81", "model.name: torchvision has no model 'resnet81'"),
        ("source: builtin, name: cifar_resnet21", "model.name: builtin has no model 'cifar_resnet21'"),
        ("source: builtin, name: cifar_resnet20, pretrained: true", "model.pretrained: builtin models have no"),
        ("source: space, name: mobilnetv3, kwargs: {preset: tiny}", "model.name: space has no model 'mobilnetv3'"),
        (
            "source: space, name: nas_bench_macro, kwargs: {preset: bset}",
            "model.kwargs: space nas_bench_macro has no pr",
        ),
        ("source: space, name: nas_bench_macro, kwargs: {presets: best}", "model.kwargs.presets: a model of a space"),
        ("source: python, name: torch.nn.Linear", "model.name: got 'torch.nn.Linear'; a python model is written"),
        ("source: bundle, name: runs/absent", "model.name: 'runs/absent' does not exist"),
    ],
)
def test_a_model_that_no_source_knows_is_no_valid_recipe(tmp_path: Path, model: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, SMALL.replace("source: builtin, name: cifar_resnet20", model)))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'recipe.yaml'}:3  {says}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet81", "model.name: timm has no model 'resnet81'; allowed: "),
        ("builtin:cifar_resnet21", "model.name: builtin has no model 'cifar_resnet21'; allowed: "),
        ("cifar_resnet20", "model.name: timm has no model 'cifar_resnet20'; "),
        ("[resnet18]", "model: got ['resnet18']; allowed: a section of keys, NAME of timm's, or SOURCE:NAME"),
    ],
)
def test_a_name_alone_that_stands_for_no_model_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, SMALL.replace("{source: builtin, name: cifar_resnet20}", name)))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'recipe.yaml'}:3  {says}")
    assert problem.endswith("; builtin has it: builtin:cifar_resnet20") == (name == "cifar_resnet20")


def test_a_name_alone_stands_for_a_section_wherever_a_model_is_named(tmp_path: Path) -> None:
    more = """train: {epochs: 1}
distill: {epochs: 1, loss: kd, teachers: {big: {model: MODEL, untrained: true}}}
references: {networks: [MODEL]}
"""
    text = SMALL.replace("{source: builtin, name: cifar_resnet20}", "MODEL").replace("none", "digits") + more
    for name, section in (
        ("builtin:cifar_resnet56", "{source: builtin, name: cifar_resnet56}"),
        ("resnet18", "{source: timm, name: resnet18}"),
        ("python:torchvision.models:resnet18", "{source: python, name: 'torchvision.models:resnet18'}"),
    ):
        long, short = (load_recipe(write(tmp_path, text.replace("MODEL", each))) for each in (section, name))
        assert short.resolved() == long.resolved() and short.given_model.source in section


def test_flags_go_on_with_a_name_alone(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL.replace("{source: builtin, name: cifar_resnet20}", "builtin:cifar_resnet20"))
    assert load_recipe(file).given_model.name == "cifar_resnet20"
    deeper = load_recipe(file, {"model.name": "cifar_resnet56", "model.kwargs.num_classes": 7}).given_model
    assert (deeper.source, deeper.name, deeper.kwargs) == ("builtin", "cifar_resnet56", {"num_classes": 7})
    with pytest.raises(InputError, match="name is no section"):
        load_recipe(file, {"name.first": "a"})


def test_a_shipped_recipe_says_how_the_files_are_given_that_it_does_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_recipe("resnet56_cifar10.yaml", {"model.checkpoint": "none.safetensors"})
    given, absent = sorted(caught.value.problems)
    assert given == '--set  model.checkpoint: no such file or folder; got "none.safetensors"'
    assert absent.endswith('data.path: no such file or folder; got "cifar10.npz"; give yours by --set data.path=PATH')


def test_a_misspelt_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"did you mean 'dimap_swin\.yaml'"):
        load_recipe("dimap_swim.yaml")


def test_a_file_goes_before_a_shipped_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dimap_swin.yaml").write_text(SMALL)
    assert load_recipe("dimap_swin.yaml").name == "small"
    assert load_recipe("dimap_swin").name == "dimap_swin"


def test_differing_keys_are_named_to_the_leaf() -> None:
    assert differing_keys({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [2], "e": None}) == [
        "a.c",
        "d",
    ]


def test_a_search_over_a_table_takes_no_section_that_needs_a_network(tmp_path: Path) -> None:
    text = (recipes_folder() / "search_nats_table.yaml").read_text() + "export: {}\n"
    with pytest.raises(InputError, match="export: a table"):
        load_recipe(write(tmp_path, text))


def test_a_recipe_needs_a_model_or_a_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model: missing"):
        load_recipe(write(tmp_path, SMALL.replace("model: {source: builtin, name: cifar_resnet20}\n", "")))
