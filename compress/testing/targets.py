"""What measuring latency relies on in a target."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from compress.core.errors import CompressError
from evaluators.latency.ask import ask
from evaluators.latency.measure import METRICS, LatencyConfig, interleave
from evaluators.latency.targets import TargetBase
from evaluators.latency.width_multiple import conv_chain

LONG = 5_000_000
"""Characters of a program as long as one with a model in it."""


def check_target(config: TargetBase) -> None:
    """Run a few programs and time two small models on the target; takes seconds.

    Raises:
        AssertionError: a recipe does not read back, a program does not arrive whole or starts where another one ended,
            what it prints or that it failed is lost, or models are not timed.
    """
    written = LatencyConfig(target=config).model_dump(mode="json")["target"]
    again = LatencyConfig.model_validate({"target": written}).target
    assert again.model_dump() == config.model_dump(), f"target {config.kind}: {written} reads back as another target"
    shown = config.shown
    assert shown and "\n" not in shown, f"target {config.kind} is called {shown!r}: one line, not empty"
    _check_programs(config)
    with TemporaryDirectory() as folder:
        models = [conv_chain(width, Path(folder)) for width in (8, 64)]
        timing = LatencyConfig(target=config, seconds=0, max_seconds=1, runs=10)
        found = interleave(models, timing)
        for record in found.records:
            missing = [name for name in METRICS if record.latency_ms.get(name) is None and name != "cpu_p50"]
            assert not missing, f"target {shown} does not measure {', '.join(missing)}"
        ratio = found.ratios[0]["median"]
        assert ratio < 1, f"target {shown}: a model with an eighth of the widths takes {ratio:.2f} times as long"
        try:
            ask(config, {"action": "measure"}, models)
        except CompressError as error:
            assert "\n" not in str(error), f"target {shown} says what went wrong in several lines: {error}"
        else:
            raise AssertionError(f"target {shown} answers a request that is none")


def _check_programs(config: TargetBase) -> None:
    long = f"text = {'x' * LONG!r}\nprint('first', len(text), 'é☃')\n"
    printed = _printed(config, long)
    assert f"first {LONG} é☃" in printed, f"target {config.shown} prints {printed[-200:]!r} for a program of 5 MB"
    printed = _printed(config, "print('text' in globals())")
    assert "False" in printed, f"target {config.shown} goes on with what another program left"
    done = config.run(b"import sys\nprint('why', file=sys.stderr)\nsys.exit(3)\n")
    assert done.returncode != 0, f"target {config.shown} does not tell that a program failed"


def _printed(config: TargetBase, program: str) -> str:
    done = config.run(program.encode())
    said = done.stderr.decode(errors="replace")[-200:]
    assert done.returncode == 0, f"target {config.shown} does not run {program[:60]!r}: {said}"
    return done.stdout.decode()
