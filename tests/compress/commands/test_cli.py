from __future__ import annotations

import json
import resource
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import compress
from compress.cli import _COMMANDS, app
from compress.commands.discover import ls
from compress.distill.losses import losses
from compress.runs.catalog import KINDS

runner = CliRunner()


def invoke(*arguments: str) -> Any:
    return runner.invoke(app, list(arguments))


def set_flags(overrides: dict[str, Any]) -> list[str]:
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def test_help_imports_no_torch_and_is_quick() -> None:
    script = (
        "import sys; sys.argv = ['compress', '--help']\n"
        "from compress.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'timm', 'onnx'} & set(sys.modules), 'heavy import'"
    )
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3  # of CPU time: other work on the machine makes the wall clock useless


@pytest.mark.parametrize("name", [name for name, _, _ in _COMMANDS])
def test_every_command_has_help_that_ends_in_an_example(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.strip().splitlines()[-1].strip().startswith(f"Example: compress {name}")


@pytest.mark.parametrize("name", [name for name, _, _ in _COMMANDS])
def test_every_option_is_told_in_a_line(name: str) -> None:
    told = invoke(name, "--help").stdout.partition("Options:\n")[2].splitlines()
    told = told[: told.index("")]
    assert [line for line in told if not line.startswith("  -")] == []


def test_every_command_is_under_one_heading() -> None:
    lines = invoke("--help").stdout.partition("and exit.")[2].splitlines()
    told = [line.split()[0] for line in lines if line.startswith("  ") and "Example" not in line]
    assert sorted(told) == sorted(name for name, _, _ in _COMMANDS)
    assert not any(line.endswith("...") for line in lines)


def test_a_recipe_that_stands_by_itself_needs_no_flag() -> None:
    alone = (["none.yaml"], ["-q", "none.yaml"], ["--set", "seed=1", "--json", "none.yaml"])
    for flags in (*alone, ["-r", "none.yaml"], ["-rnone.yaml"], ["--quiet", "--recipe", "none.yaml"]):
        result = invoke("plan", *flags)
        assert (result.exit_code, result.stderr.partition(";")[0]) == (2, "no such recipe"), flags
    assert invoke("eval", "none.yaml").stderr == "BUNDLE  none.yaml does not exist\n"
    assert "Usage: compress prune [-r] FILE [OPTIONS]" in invoke("prune", "--help").stdout


def test_a_kind_of_things_is_listed_by_ls() -> None:
    for kind in ("recipes", "models"):
        result = invoke(kind)
        assert result.exit_code == 2 and f"No such command '{kind}'; `compress ls {kind}` lists them." in result.stderr


def test_a_recipe_that_is_like_none_gets_no_suggestion(tmp_path: Path) -> None:
    assert "did you mean" not in invoke("plan", "nosuch.yaml").stderr
    assert "did you mean 'search_ray.yaml'?" in invoke("plan", "serch_ray.yaml").stderr
    told = invoke("space", "mobilenetv3", "--arch", str(tmp_path / "nosuch.json")).stderr
    assert told == f"{tmp_path}/nosuch.json: cannot be read: No such file or directory\n"


def test_what_is_something_else_than_was_asked_for_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "model.onnx").touch()
    told = invoke("quantize", str(tmp_path))
    assert told.exit_code == 2 and told.stderr.strip().endswith(f"is a directory; its recipe is {tmp_path}/recipe.yaml")
    told = invoke("inspect", str(tmp_path / "model.onnx"))
    assert told.exit_code == 2 and "is an ONNX file, which holds no modules" in told.stderr
    told = invoke("validate", "full_pipeline.yaml", "--set", "references.networks=[3]")
    assert (
        told.exit_code == 2
        and "references.networks.0: got 3; allowed: a section of keys, NAME of timm's" in told.stderr
    )


def test_only_commands_that_work_are_offered() -> None:
    offered = {name for name, _, _ in _COMMANDS}
    assert offered == set(
        (
            "prune distill sort quantize search rank pick cache-teacher run plan inspect export latency latency-table "
            "eval report compare space ls cat cp validate schema doctor"
        ).split()
    )


def test_an_unknown_flag_or_command_is_exit_code_2() -> None:
    assert invoke("prune", "--recipe", "dimap_swin.yaml", "--nonsense").exit_code == 2
    assert invoke("distill").exit_code == 2


def test_all_problems_of_a_recipe_are_lines_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "version: 1\nname: bad\nmodel: {name: resnet81}\ndata: {name: none}\n"
        "prune: {kind: weights, sparsity: 1.5, criterio: dimap}\nfinetune: {epochs: 1}\nlatency: {threads: 0}\n"
    )
    result = invoke("validate", str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    keys = [line.split("  ")[1].split(":")[0] for line in lines]
    assert keys[0] == "prune.criterio"
    assert sorted(keys) == sorted(["prune.criterio", "prune.sparsity", "latency.threads", "model.name", "finetune"])
    assert "did you mean 'criterion'?" in lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe", "dimap_swn.yaml"], "did you mean 'dimap_swin.yaml'?"),
        (["--recipe", "dimap_swin.yaml", "--device", "tpu"], "--device"),
        (["--recipe", "dimap_swin.yaml", "--set", "prune.sparsity=1.5"], "--set  prune.sparsity: out of range"),
        (["--recipe", "dimap_swin.yaml", "--set", "prune=null"], "no such section"),
        (["--recipe", "dimap_swin.yaml", "--set", "model.checkpoint=none.pth"], "no such file"),
        (["--recipe", "dimap_swin.yaml", "--out", "/dev/null/run"], "cannot be written"),
    ],
)
def test_wrong_input_is_exit_code_2_in_one_sentence(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("prune", *flags)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_prune_ends_with_its_summary_and_json_is_the_report(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["prune", "--recipe", "dimap_swin.yaml", "--device", "cpu", *set_flags({**quick, "latency": None})]
    result = invoke(*flags)
    assert result.exit_code == 0, result.stderr
    assert "estimated" in result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("swin_tiny_patch4_window7_224  nonzero MACs ")
    assert last.endswith("  runs/dimap_swin")
    again = invoke(*flags, "--resume", "--json", "--quiet")
    assert json.loads(again.stdout)["final"]["macs"] > 0


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.runs.runner.open_model", interrupted)
    out = str(tmp_path / "a run")
    result = invoke("prune", "--recipe", "dimap_swin.yaml", "--seed", "3", "--out", out)
    assert result.exit_code == 130
    expected = f"go on with: compress prune --recipe dimap_swin.yaml --out '{out}' --seed 3 --resume"
    assert expected in result.stderr


def test_report_compare_eval_export_and_latency_work_on_a_run(finished_run: Path, tmp_path: Path) -> None:
    report = invoke("report", str(finished_run))
    assert "report.html" in report.stdout
    compared = invoke("compare", str(finished_run), str(finished_run), "--json")
    assert len(json.loads(compared.stdout)) == 2
    assert invoke("compare", str(finished_run)).exit_code == 2
    final = json.loads((finished_run / "report.json").read_text())["final"]
    for place in (finished_run, finished_run / "model.onnx", finished_run / "stages" / "04-export"):
        found = json.loads(invoke("eval", str(place), "--json").stdout)
        assert found["top1"] == pytest.approx(final["top1"])
        assert found["loss"] == pytest.approx(final["loss"], rel=1e-4)
    onnx = tmp_path / "small.onnx"
    exported = invoke("export", str(finished_run), "-o", str(onnx), "--set", "export.exporter=torchscript", "--json")
    assert json.loads(exported.stdout)["bytes"] == onnx.stat().st_size
    quick_timing = ["--set", "latency.runs=3", "--set", "latency.seconds=0", "--set", "latency.max_seconds=1"]
    timed = invoke("latency", str(onnx), str(finished_run), *quick_timing, "--json")
    assert json.loads(timed.stdout)[1]["latency_ratio"]["median"] > 0


def test_eval_outside_a_run_asks_for_a_recipe(tmp_path: Path) -> None:
    result = invoke("eval", str(tmp_path))
    assert result.exit_code == 2
    assert "--recipe" in result.stderr


def test_ls_tells_on_a_terminal_what_a_name_stands_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    ls("sources", "t*")
    assert capsys.readouterr().out.splitlines() == [
        "timm         PyTorch image models; the part of...",
        "torchvision  torchvision's classifiers,...",
    ]


def test_ls_cat_cp_and_schema_show_what_there_is(tmp_path: Path) -> None:
    assert "dimap_swin.yaml" in invoke("ls").stdout.splitlines()
    assert "timm:swin_tiny_patch4_window7_224" in invoke("ls", "models", "*swin*").stdout.splitlines()
    assert "dimap" in json.loads(invoke("ls", "criteria", "--json").stdout)
    assert invoke("ls", "losses").stdout.split() == list(losses)
    assert "digits" in invoke("ls", "datasets").stdout.split()
    assert invoke("ls", "targets").stdout.split() == ["command", "local", "ray"]
    assert invoke("ls", "models", "resnet50").stdout.split() == ["timm:resnet50", "torchvision:resnet50"]
    for kind in KINDS:
        assert invoke("ls", kind).stdout.splitlines() == json.loads(invoke("ls", kind, "--json").stdout), kind
    wrong = invoke("ls", "recipe")
    assert wrong.exit_code == 2
    assert "did you mean 'recipes'?" in wrong.stderr
    copied = tmp_path / "mine.yaml"
    assert invoke("cp", "dimap_swin.yaml", str(copied)).exit_code == 0
    assert invoke("cp", "dimap_swin.yaml", str(copied)).exit_code == 2
    assert invoke("cat", "dimap_swin").stdout == copied.read_text()
    (tmp_path / "picture.yaml").write_bytes(bytes(range(256)))
    for command in (["cat"], ["validate"], ["cp", str(tmp_path / "copy.yaml")]):
        result = invoke(command[0], str(tmp_path / "picture.yaml"), *command[1:])
        assert result.exit_code == 2 and "not a text file" in result.stderr
    assert not (tmp_path / "copy.yaml").exists()
    resolved = invoke("cat", "dimap_swin.yaml", "--resolved", "--set", "seed=7").stdout
    copied.write_text(resolved)
    assert yaml.safe_load(invoke("cat", str(copied), "--resolved").stdout) == yaml.safe_load(resolved)
    assert json.loads(invoke("schema").stdout)["properties"].keys() >= {"model", "data", "prune"}


def test_validate_answers_in_json_too(tmp_path: Path) -> None:
    assert json.loads(invoke("validate", "dimap_swin.yaml", "--json").stdout) == {"valid": True, "problems": []}
    result = invoke("validate", "dimap_swin.yaml", "--set", "sede=1", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["valid"] is False


def test_python_runs_the_package_as_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compress", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("compress", run_name="__main__")
    assert ended.value.code == 0 and compress.__version__ in capsys.readouterr().out


def test_doctor_names_versions_and_the_width_multiple() -> None:
    found = json.loads(invoke("doctor", "--json").stdout)
    assert found["packages"]["torch"]
    assert found["width_multiple"] in (4, 8, 16, 32)
    assert invoke("doctor").stdout.splitlines()[-1].startswith(("nothing wrong", "warning"))
