"""A command that is told to end does so in a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, time
from compress import cli
from compress.core.errors import InputError

@cli.app.command("wait")
@cli.guarded
def wait(fork: bool = False) -> None:
    child = os.fork() if fork else None
    if child == 0:  # of a library: it is simply gone
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
    if child is not None:
        print(os.waitpid(child, 0)[1] == signal.SIGTERM, flush=True)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted; go on with: it") from error

cli.main()
"""


@pytest.mark.parametrize(("words", "printed"), [([], ""), (["--fork"], "True\n")])
def test_sigterm_ends_a_command_as_ctrl_c_does(words: list[str], printed: str) -> None:
    command = [sys.executable, "-c", SCRIPT, "wait", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, printed, "\ninterrupted; go on with: it\n")
