"""The agent's answers: its program and the files are sent to the Python of a target, which prints one line of JSON."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

from compress.core.errors import CompressError, InputError
from compress.core.onnx_parts import parts, together
from evaluators.latency import agent
from evaluators.latency.targets import TargetBase

PIECE_BYTES = 3 * 2**18


def ask(target: TargetBase, request: dict[str, Any], models: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the agent's answer to `request` about the ONNX files `models`.

    Local files are measured in a child process, by the same agent: as fast as in this one (measured), and a crash of
    the runtime does not take the run with it.

    Raises:
        InputError: the command cannot be started, or the model or request does not suit the target.
        CompressError: the command failed, timed out, or its Python lacks numpy or onnxruntime.
    """
    with ExitStack() as stack:
        if target.here:
            sent, where = b"", ""
            names = [str(stack.enter_context(together(path))) for path in models]
        else:
            where = f" (on {target.shown!r})"
            names = [f"{index}/{path.name}" for index, path in enumerate(models)]
            files = [
                (f"{index}/{name}", file) for index, path in enumerate(models) for name, file in parts(path).items()
            ]
            sent = b"".join(_pieces(name, file) for name, file in files)
        call = f"main({json.dumps(request | {'models': names})!r})\n"
        reply = _read(target.run(program() + sent + call.encode()), target.shown)
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
