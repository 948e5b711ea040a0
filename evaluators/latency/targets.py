"""Where latency is measured: this machine in a process of its own, what a command such as ssh reaches, a Ray node."""

from __future__ import annotations

import base64
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from compress.core.config import Config
from compress.core.errors import CompressError, InputError
from compress.core.onnx_parts import parts, together
from evaluators.latency import agent, ray_target
from evaluators.latency.ray_target import RayTarget

PIECE_BYTES = 3 * 2**18
WIDTHS_TRIED = (4, 8, 16)
BASE_WIDTH = 64
UNHINDERED = 0.9


class CommandTarget(Config):
    """A command that runs a Python with numpy and onnxruntime, and reads its program from standard input."""

    command: str = Field(description="run without a shell, such as 'ssh host python3 -' or 'adb shell python3 -'")
    timeout: float = Field(1800.0, gt=0, description="seconds until a silent target is given up")

    @field_validator("command")
    @classmethod
    def _splits(cls, command: str) -> str:
        if not shlex.split(command):
            raise ValueError("an empty command; expected one such as 'ssh host python3 -'")
        return command


Target = Literal["local"] | CommandTarget | RayTarget


def name_of(target: Target) -> str:
    """Return how a target is called in messages and tables: local, its command, or ray:LABEL."""
    if isinstance(target, str):
        return target
    return target.command if isinstance(target, CommandTarget) else ray_target.name(target)


def in_recipe(name: str) -> str | dict[str, str]:
    """Return what a recipe writes for the target of that name, see `name_of`."""
    if name == "local":
        return name
    return {"ray": name.removeprefix("ray:")} if name.startswith("ray:") else {"command": name}


@dataclass(frozen=True)
class WidthMultiple:
    """The multiple that channel widths should keep to on a target, and how that is known."""

    value: int
    source: str


def ask(target: Target, request: dict[str, Any], models: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the agent's answer to `request` about the ONNX files `models`.

    Local files are measured in a child process, by the same agent: as fast as in this one (measured), and a crash of
    the runtime does not take the run with it.

    Raises:
        InputError: the command cannot be started, or the model or request does not suit the target.
        CompressError: the command failed, timed out, or its Python lacks numpy or onnxruntime.
    """
    with ExitStack() as stack:
        if target == "local":
            sent, where = b"", ""
            names = [str(stack.enter_context(together(path))) for path in models]
        else:
            where = f" (on {name_of(target)!r})"
            names = [f"{index}/{path.name}" for index, path in enumerate(models)]
            files = [
                (f"{index}/{name}", file) for index, path in enumerate(models) for name, file in parts(path).items()
            ]
            sent = b"".join(_pieces(name, file) for name, file in files)
        call = f"main({json.dumps(request | {'models': names})!r})\n"
        reply = _read(_run_on(target, program() + sent + call.encode()), name_of(target))
    if "error" in reply:
        raise (InputError if reply.get("input") else CompressError)(f"latency: {reply['error']}{where}")
    return reply


LOADER = """import sys, types
def _load(name, source):
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
"""


@functools.cache
def program() -> bytes:
    """Return Python that brings `main` and `part` of the agent to an interpreter without this project."""
    folder = resources.files("evaluators.latency").joinpath("agent")
    package = "evaluators.latency.agent"
    names = {f"{package}.{name}": f"{name}.py" for name in agent.MODULES} | {package: "__init__.py"}
    loads = [f"_load({name!r}, {folder.joinpath(file).read_text('utf-8')!r})\n" for name, file in names.items()]
    return (LOADER + "".join(loads) + f"from {package} import main, part\n").encode()


def _pieces(name: str, file: Path) -> bytes:
    """Return Python lines that hand `file` to the agent."""

    def lines() -> Iterator[bytes]:
        with file.open("rb") as opened:
            while piece := opened.read(PIECE_BYTES):
                yield f"part({name!r}, '{base64.b64encode(piece).decode()}')\n".encode()

    return b"".join(lines())


def _run_on(target: Target, program: bytes) -> subprocess.CompletedProcess[bytes]:
    if target == "local":
        # -P: what lies in the working directory may be called like a module of the standard library
        return _run([sys.executable, "-P", "-"], program, None)
    if isinstance(target, CommandTarget):
        return _run(shlex.split(target.command), program, target.timeout)
    return ray_target.run_on_node(target, program)


def _run(command: list[str], program: bytes, timeout: float | None) -> subprocess.CompletedProcess[bytes]:
    shown = shlex.join(command)
    # Unbuffered, Python reads its program one byte a system call: 4 minutes for a model of 350 MB.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    try:
        return subprocess.run(
            command, input=program, capture_output=True, timeout=timeout, check=False, env=environment
        )
    except OSError as error:
        reason = "no such program" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise InputError(f"latency target command {shown!r} cannot be started: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"latency target command {shown!r} did not answer within {timeout:g} s") from error


def _read(done: subprocess.CompletedProcess[bytes], shown: str) -> dict[str, Any]:
    """Return the agent's JSON line among what the command printed (a login may print a greeting before)."""
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        if line.startswith('{"agent"'):
            try:
                reply: dict[str, Any] = json.loads(line)
            except ValueError:
                break
            return reply
    said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]
    if done.returncode:
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"failed with {done.returncode}"
        raise CompressError(f"latency target {shown!r} {how}: {said}")
    raise CompressError(
        f"latency target {shown!r} printed no result; it must run a Python that reads its program from "
        f"standard input, as 'ssh host python3 -' does; {said}"
    )


@functools.cache
def width_multiple(target: Target) -> WidthMultiple:
    """Return the multiple of channels that keeps the runtime's fast convolution path (ONNX Runtime's NCHWc blocks).

    16 with AVX-512, 8 with AVX2; on any other processor it is measured with chains of convolutions (about 20 s).
    """
    extension = ask(target, {"action": "cpu"})["vector_extension"]
    if extension == "avx512":
        return WidthMultiple(16, "AVX-512")
    if extension == "avx2":
        return WidthMultiple(8, "AVX2")
    return measured_width_multiple(target)


def measured_width_multiple(target: Target) -> WidthMultiple:
    """Return the smallest m of 4, 8, 16 at which 64 + m channels cost as little per MAC as 64 do; else 32."""
    request = {
        "action": "compare", "threads": 1, "batch": 1, "input_size": None, "provider": "CPUExecutionProvider",
        "optimization": "all", "runs": 1, "seconds": 0, "max_seconds": 10, "precision": 0.1, "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = conv_chain(BASE_WIDTH, Path(folder))
        for multiple in WIDTHS_TRIED:
            width = BASE_WIDTH + multiple
            answer = ask(target, request, [base, conv_chain(width, Path(folder))])
            speed = answer["result"]["ratios"][0]["median"] * (width / BASE_WIDTH) ** 2
            if speed >= UNHINDERED:
                return WidthMultiple(
                    multiple, f"measured: per MAC, {width} channels run at {speed:.2f} of the speed of 64"
                )
    return WidthMultiple(32, "measured: none of 4, 8, 16 keeps the speed of 64 channels")


def conv_chain(width: int, folder: Path) -> Path:
    """Write three 3x3 convolutions of `width` channels on a 28 x 28 map, with ReLU between; return the file."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "input"
    for index in range(3):
        weight = generator.standard_normal((width, width, 3, 3), dtype=np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    shape = [1, width, 28, 28]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    path = folder / f"conv{width}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
