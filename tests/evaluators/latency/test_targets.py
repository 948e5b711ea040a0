import platform
import shlex
import sys

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

import evaluators.latency.ask
import evaluators.latency.processor
import evaluators.latency.width_multiple
from compress.core.errors import CompressError, InputError
from evaluators.latency import agent
from evaluators.latency.ask import ask
from evaluators.latency.measure import LatencyConfig, compare, measure
from evaluators.latency.processor import Processor, processor
from evaluators.latency.targets.command import CommandTarget
from evaluators.latency.targets.local import LocalTarget
from evaluators.latency.width_multiple import WidthMultiple, conv_chain, measured_width_multiple, width_multiple

PYTHON = shlex.quote(sys.executable)


def through(command, **kwargs):
    return LatencyConfig(seconds=0, target=CommandTarget(command=command, **kwargs))


@pytest.fixture
def model(tmp_path):
    return conv_chain(32, tmp_path)


@pytest.fixture(autouse=True)
def forget():
    for known in (width_multiple, processor):
        known.cache_clear()
    yield
    for known in (width_multiple, processor):
        known.cache_clear()


def test_a_command_measures_like_this_machine(model):
    assert set(measure(model, through(f"{PYTHON} -"))) == set(measure(model, LatencyConfig(seconds=0)))


def test_a_command_receives_both_models_of_a_comparison(model, tmp_path):
    config = through(f"{PYTHON} -").model_copy(update={"max_seconds": 1.0})
    assert compare(conv_chain(80, tmp_path), model, config)["median"] > 2


def test_models_larger_than_one_piece_arrive_whole(model, monkeypatch):
    monkeypatch.setattr(evaluators.latency.ask, "PIECE_BYTES", 999)
    assert measure(model, through(f"{PYTHON} -"))["runs"] >= 100


def test_weights_beside_the_file_travel_with_it(model, tmp_path):
    pair = tmp_path / "pair" / "model.onnx"
    pair.parent.mkdir()
    onnx.save_model(onnx.load(model), pair, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert measure(pair, through(f"{PYTHON} -"))["runs"] >= 100
    (pair.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin, which is not there"):
        measure(pair, LatencyConfig())


def test_a_greeting_before_the_answer_is_ignored(model, tmp_path):
    greeter = tmp_path / "greeter"
    greeter.write_text(f"#!/bin/sh\necho 'Welcome to {{host}}'\nexec {PYTHON} -\n")
    greeter.chmod(0o755)
    assert measure(model, through(str(greeter)))["runs"] >= 100


def test_no_shell_reads_the_command(model, tmp_path):
    with pytest.raises(CompressError, match="printed no result"):
        measure(model, through(f"echo ; touch {tmp_path / 'made'}"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        ("no-such-program-anywhere host", InputError, "cannot be started: no such program"),
        ("/tmp", InputError, "cannot be started: Permission denied"),
        ("false", CompressError, "failed with 1: it said nothing"),
        ("sh -c 'echo ssh: no route to host >&2; exit 255'", CompressError, "failed with 255: ssh: no route to host"),
        ("sh -c 'kill -9 $$'", CompressError, "killed by signal 9"),
        ("true", CompressError, "printed no result.*python3 -"),
        ("cat", CompressError, "printed no result"),
        (f"{PYTHON} -I -S -", CompressError, "lacks numpy"),
    ],
)
def test_a_command_that_does_not_answer_is_one_sentence(model, command, error, says):
    with pytest.raises(CompressError, match=says) as caught:
        measure(model, through(command))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_a_silent_command_is_given_up(model):
    with pytest.raises(CompressError, match=r"did not answer within 0\.3 s"):
        measure(model, through("sleep 20", timeout=0.3))


@pytest.mark.parametrize("command", ["", "  ", "ssh 'host"])
def test_a_command_that_cannot_be_split_is_refused(command):
    with pytest.raises(ValidationError):
        CommandTarget(command=command)


@pytest.mark.parametrize(
    ("extension", "expected"), [("avx512", WidthMultiple(16, "AVX-512")), ("avx2", WidthMultiple(8, "AVX2"))]
)
def test_width_multiple_follows_the_targets_vectors(monkeypatch, extension, expected):
    monkeypatch.setattr(evaluators.latency.width_multiple, "ask", lambda *_: {"vector_extension": extension})
    assert width_multiple(LocalTarget()) == expected


def test_width_multiple_asks_the_command_for_its_processor():
    found = width_multiple(CommandTarget(command=f"{PYTHON} -I -S -"))
    assert found.value == {"avx512": 16, "avx2": 8}[agent.vector_extension()]


def test_a_processor_is_that_of_the_target(monkeypatch):
    answer = {"vector_extension": "avx2", "machine": "x86_64", "features": ["avx2", "avx_vnni"]}
    monkeypatch.setattr(evaluators.latency.processor, "ask", lambda *_: answer)
    there = processor(CommandTarget(command="ssh board python3 -"))
    assert (there.x86, there.arm, there.vnni) == (True, False, True)
    assert not Processor("x86_64", ("avx2", "avx512f")).vnni
    assert Processor("aarch64", ("asimddp",)).arm


def test_this_processor_is_asked_by_the_agent():
    found = processor(CommandTarget(command=f"{PYTHON} -I -S -"))
    assert (found.machine, list(found.features)) == (platform.machine(), agent.features())


@pytest.mark.parametrize(("free_from", "value"), [(4, 4), (8, 8), (16, 16), (64, 32)])
def test_an_unknown_processor_is_measured(monkeypatch, free_from, value):
    """Widths cost as if rounded up to a multiple of `free_from`."""

    def answer(target, request, models=()):
        if request["action"] == "cpu":
            return {"vector_extension": None}
        rounded = [-(-int(path.stem.removeprefix("conv")) // free_from) * free_from for path in models]
        return {"result": {"ratios": [{"median": (rounded[0] / rounded[1]) ** 2}]}}

    monkeypatch.setattr(evaluators.latency.width_multiple, "ask", answer)
    found = width_multiple(LocalTarget())
    assert found.value == value
    assert found.source.startswith("measured")


@pytest.mark.slow
def test_measuring_agrees_with_what_the_processor_says():
    if agent.vector_extension() != "avx512":
        pytest.skip("the measured multiple is known for AVX-512 only")
    assert measured_width_multiple(LocalTarget()).value == 16


def test_the_conv_chain_runs_on_its_own_width(tmp_path):
    import onnxruntime

    session = onnxruntime.InferenceSession(conv_chain(24, tmp_path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.ones((1, 24, 28, 28), np.float32)})
    assert output.shape == (1, 24, 28, 28)


def test_wrong_input_on_a_command_names_the_command(model):
    with pytest.raises(InputError, match=r"fixed batch of 1; got batch 2.*'.*python"):
        measure(model, through(f"{PYTHON} -").model_copy(update={"batch": 2}))


def test_local_errors_do_not_mention_a_command(model):
    with pytest.raises(InputError) as caught:
        ask(LocalTarget(), {**agent_request(), "batch": 2}, [model])
    assert sys.executable not in str(caught.value)


def agent_request():
    return {"action": "measure", "seed": 0, **LatencyConfig().model_dump(exclude={"target"})}
