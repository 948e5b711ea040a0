"""A page of Markdown is played in an empty folder: files are written, commands run, output held against the page.

What a block of code is, by what stands on the page:

- any language, after a line that ends in "`NAME`:": the content of a file, written before the page goes on;
- `bash`: commands, each has to end with exit code 0, or with N where the line's comment says "exit code N";
- `text`, after commands: what they printed; every line has to be among their output, figures and spaces aside
  (`console` is not held against it: what another processor would print in other words);
- `yaml`, in docs/: sections of a recipe, which have to be valid;
- `python`, in docs/: runs in the folder (that of torch-pruning by the tests of its own).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pages
import pytest
import yaml
from typer.testing import CliRunner

from compress.cli import app
from compress.core.registry import module_of
from compress.runs.catalog import REGISTRIES, registries
from compress.runs.recipe import recipe_schema

NOT_HERE = {
    "ray start": "tests/search/test_ray.py starts a cluster",
    "pip install": "the run of CI installs so before it tests",
    "python3 -m venv": "the run of CI makes its own",
    "pytest": "this is one of its tests",
    "ruff": "the run of CI does it",
    "bash .ci/run": "this is part of it",
    "bash .ci/lowest": "the run of CI does it in another environment",
}
"""Beginnings of the commands that are not run here, and why; those that run a shipped recipe: see test_recipes."""

SSH = '#!/bin/sh\n# Stands for ssh: what the board would run is run here.\nshift\nexec sh -c "$*"\n'


@dataclass(frozen=True)
class Block:
    """A block of code, the file that the line before it names, and its first line on the page."""

    language: str
    content: str
    file: str | None
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page."""
    for found in re.finditer(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        before = page[: found.start()].rstrip().rpartition("\n")[2]
        named = re.search(r"`([\w./-]+\.\w+)`:$", before)
        line = page.count("\n", 0, found.start()) + 2
        yield Block(found[1], found[2], named[1] if named else None, line)


def play(page: Path, folder: Path, patch: pytest.MonkeyPatch) -> int:
    """Do what a reader of `page` would do in `folder`, and return how many commands were run."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    _stand_ins(folder, patch)
    before = set(sys.modules)
    output, played = "", 0
    try:
        for block in blocks(page.read_text(encoding="utf-8")):
            where = f"{page.name}:{block.line}"
            if block.file:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.content, encoding="utf-8")
            elif block.language == "bash":
                output = ""
                for line in block.content.replace("\\\n", " ").splitlines():
                    command, _, comment = line.partition(" #")
                    if not command.strip() or command.startswith(tuple(NOT_HERE)) or pages.shipped(command):
                        continue
                    code = re.search(r"exit code (\d+)", comment)
                    output += _run(command.strip(), folder, int(code[1]) if code else 0, where)
                    played += 1
            elif block.language == "text" and not block.content.strip():
                raise AssertionError(f"{where}: an empty block; it is to hold what is printed")
            elif block.language == "text" and output:
                lost = [line for line in block.content.splitlines() if not _among(line, output)]
                assert not lost, f"{where}: not printed:\n" + "\n".join([*lost, "--- but:", output])
            elif block.language == "yaml" and page.parent != pages.ROOT:
                _check_sections(block.content, where)
            elif block.language == "python" and page.parent != pages.ROOT and "torch_pruning" not in block.content:
                exec(compile(block.content, where, "exec"), {"__name__": "__main__"})
    finally:
        _forget(folder, before)
    return played


def _forget(folder: Path, before: set[str]) -> None:
    """Forget the reader's modules, which other pages have under the same names, and what they registered."""
    mine = {
        name
        for name in set(sys.modules) - before
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder))
    }
    for registry in (registry for kind in REGISTRIES for registry in registries(kind)):
        for name in [name for name, item in registry._items.items() if module_of(item) in mine]:
            del registry._items[name]
    for name in mine:
        del sys.modules[name]


def _stand_ins(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Put what stands for other machines, and this Python's programs, in front of the programs that commands find."""
    programs = folder.parent / f"{folder.name}-programs"
    programs.mkdir(exist_ok=True)
    ssh = programs / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    patch.setenv("COMPRESS_CACHE", str(programs / "cache"))
    patch.setenv("PATH", os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]))


def _run(command: str, folder: Path, code: int, where: str) -> str:
    """Run a command, in this process where it is ours, and return what it printed.

    Scripts get a process of their own: one may register what configs that are made already do not know.
    """
    words = shlex.split(command)
    if words[0] == "compress" and not {"|", ">"} & set(words):
        result = CliRunner().invoke(app, pages.quicker(command, folder))
        assert result.exit_code == code, (where, command, result.output)
        return str(result.output)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == code, (where, command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def _among(line: str, output: str) -> bool:
    """Return whether a line of the page is one of the output's, by its words; `...` stands for anything."""
    wanted = re.escape(_words(line)).replace(r"\ \.\.\.", "( .*)?").replace(r"\.\.\.", ".*")
    return any(re.fullmatch(wanted, _words(printed)) for printed in output.splitlines())


def _words(line: str) -> str:
    """Return a line with figures, frames and runs of spaces made alike, by whichever clock times were told."""
    line = line.replace(" ms of CPU time", " ms")  # where the machine is busy
    line = re.sub(r"[-+\u2212\u00b1]?\d[\d.,]*(e[-+]?\d+)?", "0", line)
    line = re.sub(r"\b0 (K|M|G)\b", "0", line)
    return re.sub(r"[\s─━│-]+", " ", line).strip()


def _check_sections(content: str, where: str) -> None:
    sections = yaml.safe_load(content)
    base = {"version": 1, "name": "page", "model": {"name": "resnet18"}, "data": {"name": "digits"}}
    try:
        recipe_schema().model_validate(base | sections)
    except ValueError as error:
        raise AssertionError(f"{where}: {error}") from error
