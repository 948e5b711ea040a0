"""Export to ONNX with both of torch's exporters, check the file against the module, keep the faster correct one."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.config import Config
from compress.errors import CompressError, InputError
from compress.onnx_file import Check, clean, place, read_opset, verify
from compress.progress import say

EXPORTERS = ("dynamo", "torchscript")
CHECKED_BATCHES = (1, 2, 3, 2)
CLEARLY_FASTER = 1.02
CHATTY_LOGGERS = ("", "torch", "torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


class ExportConfig(Config):
    """How a model becomes an ONNX file."""

    exporter: Literal["auto", "dynamo", "torchscript"] = Field(
        "auto", description="which of torch's exporters; auto tries both and keeps the faster correct file"
    )
    opset: int | None = Field(20, ge=13, le=25, description="ONNX operator set; null for the exporter's own default")
    dynamic_batch: bool = Field(True, description="any batch size at run time")
    batch: int = Field(1, ge=1, description="the file's batch size where dynamic_batch is false")


@dataclass(frozen=True)
class ExportResult:
    """The exported file and what is known of it.

    `tried` holds for each exporter {"error", "parity_max_rel", "bytes", "seconds", "relative_time"}: why it failed or
    null, and its latency in terms of the kept file's where both were correct.
    """

    path: Path
    exporter: str
    opset: int
    parity_max_rel: float
    bytes: int
    checked_batches: tuple[int, ...]
    denormals_zeroed: int
    seconds: float
    tried: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it."""
        return asdict(self) | {"path": str(self.path)}


@dataclass
class Attempt:
    """What one exporter made."""

    exporter: str
    file: Path
    error: str | None = None
    chatter: str = ""
    parity: float | None = None
    denormals: int = 0
    seconds: float = 0.0
    relative_time: float | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `ExportResult.tried`."""
        size = sum(each.stat().st_size for each in self.file.parent.iterdir()) if self.error is None else None
        return {
            "error": self.error, "parity_max_rel": self.parity, "bytes": size,
            "seconds": round(self.seconds, 2), "relative_time": self.relative_time,
        }  # fmt: skip


def export(
    model: nn.Module, example_inputs: Tensor, path: Path | str, config: ExportConfig | None = None
) -> ExportResult:
    """Write `model` to the ONNX file `path` (input `input`, output `logits`): complete and verified, or not at all.

    `example_inputs` is (N, C, H, W). The file is compared with the module in eval mode on smooth noise images of
    several batch sizes (max|d| / max|y| <= 1e-4 and the same winner) and by the ONNX checker. The module is left as
    it was. A file of more than 1.5 GB comes with its weights in `<path>.data`.

    Raises:
        InputError: `path` cannot be written.
        CompressError: no exporter made a correct file; the sentence names the cause of each.
    """
    config, path = config or ExportConfig(), Path(path)
    started = time.perf_counter()
    module = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    example = example_inputs.detach().cpu()
    checks = _checks(module, example, config)
    names = EXPORTERS if config.exporter == "auto" else (config.exporter,)
    data_name = f"{path.name}.data"
    with _folder_beside(path) as folder:
        traced = _images(example, 2 if config.dynamic_batch else config.batch, seed=7)
        attempts = [_attempt(name, module, traced, checks, folder / name, data_name, config) for name in names]
        best = _fastest(attempts, path, batch=1 if config.dynamic_batch else config.batch)
        tried = {each.exporter: each.to_dict() for each in attempts}
        opset, size = read_opset(best.file), place(best.file, path, data_name)
    notes = []
    if not any(check.expected.any() for check in checks):
        notes.append("the model answers 0 to every input (an untrained head?), so agreement with it proves nothing")
    if config.opset not in (None, opset):
        notes.append(f"opset {config.opset} was asked for; the {best.exporter} exporter wrote opset {opset}")
    for note in notes:
        say(note)
    return ExportResult(
        path=path, exporter=best.exporter, opset=opset, parity_max_rel=best.parity or 0.0, bytes=size,
        checked_batches=tuple(sorted({len(each.inputs) for each in checks})), denormals_zeroed=best.denormals,
        seconds=time.perf_counter() - started, tried=tried, notes=tuple(notes),
    )  # fmt: skip


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same disk as `path`, gone afterwards."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give the name of an ONNX file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    with folder as name:
        yield Path(name)


def _checks(module: nn.Module, example: Tensor, config: ExportConfig) -> list[Check]:
    """Return the example and several images at several batch sizes, each with the module's own answer."""
    batches = CHECKED_BATCHES if config.dynamic_batch else (config.batch,) * 3
    inputs = [_images(example, batch, seed) for seed, batch in enumerate(batches)]
    if config.dynamic_batch or len(example) == config.batch:
        inputs.append(example)
    with torch.no_grad():
        outputs = [module(each) for each in inputs]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise CompressError(f"the model returns a {type(output).__name__}; only one tensor can be exported")
        if not torch.isfinite(output).all():
            raise CompressError("the model's output holds NaN or infinite values, so its export cannot be checked")
    return [Check(image, output.clone()) for image, output in zip(inputs, outputs, strict=True)]


def _images(example: Tensor, batch: int, seed: int) -> Tensor:
    """Return (batch, ...) inputs like `example`: smooth areas plus noise, scaled as normalised images are."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((batch, *example.shape[1:]), generator=generator)
    if example.ndim == 4:
        coarse = torch.randn((batch, example.shape[1], 4, 4), generator=generator)
        noise = 0.4 * noise + 0.9 * nn.functional.interpolate(coarse, size=example.shape[2:], mode="bilinear")
    return noise.to(example.dtype)


def _attempt(
    name: str,
    module: nn.Module,
    traced: Tensor,
    checks: list[Check],
    folder: Path,
    data_name: str,
    config: ExportConfig,
) -> Attempt:
    """Export with one exporter into `folder`, clean and verify the file; a failure is recorded, not raised."""
    say(f"exporting with torch's {name} exporter")
    attempt, started = Attempt(name, folder / f"{name}.onnx"), time.perf_counter()
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder.parent) as raw:
        try:
            with _quiet() as chatter:
                _write(name, module, traced, Path(raw) / "raw.onnx", config)
                attempt.denormals = clean(Path(raw) / "raw.onnx", attempt.file, data_name)
                attempt.parity = verify(attempt.file, checks)
        except Exception as error:  # exporters raise anything; the other one may still do
            attempt.error, attempt.chatter = _cause(error), chatter.getvalue()
    attempt.seconds = time.perf_counter() - started
    return attempt


def _write(name: str, module: nn.Module, traced: Tensor, file: Path, config: ExportConfig) -> None:
    """Call the exporter on `traced`; of batch 2 where it is dynamic, since older versions of torch keep 1 constant."""
    common: dict[str, Any] = {
        "opset_version": config.opset, "input_names": ["input"], "output_names": ["logits"], "verbose": False,
    }  # fmt: skip
    if name == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},) if config.dynamic_batch else None
        size = sum(each.numel() * each.element_size() for each in module.state_dict().values())
        torch.onnx.export(
            module, (traced,), file, dynamo=True, dynamic_shapes=shapes, external_data=size > 1_000_000_000, **common
        )
    else:
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}} if config.dynamic_batch else None
        torch.onnx.export(copy.deepcopy(module), (traced,), str(file), dynamo=False, dynamic_axes=axes, **common)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Catch what exporters print, warn and log; yield where it goes."""
    chatter = io.StringIO()
    handlers = [each for name in CHATTY_LOGGERS for each in logging.getLogger(name).handlers]
    streams = [(each, each.stream) for each in handlers if type(each) is logging.StreamHandler]
    with contextlib.ExitStack() as stack:
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("default")
        stack.callback(lambda: chatter.writelines(f"{each.message}\n" for each in warned))
        stack.enter_context(contextlib.redirect_stdout(chatter))
        stack.enter_context(contextlib.redirect_stderr(chatter))
        for handler, stream in streams:
            handler.setStream(chatter)
            stack.callback(handler.setStream, stream)
        yield chatter


def _cause(error: BaseException) -> str:
    """Return the first line of what lies at the root of an exporter's exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((each.strip() for each in str(error).splitlines() if each.strip()), "no message")[:300]
    return line if isinstance(error, CompressError) else f"{type(error).__name__}: {line}"


def _fastest(attempts: list[Attempt], path: Path, batch: int) -> Attempt:
    """Return the attempt to keep: torchscript's only where it is clearly faster, so that reruns agree."""
    correct = [each for each in attempts if each.error is None]
    if not correct:
        causes = "; ".join(f"{each.exporter}: {each.error}" for each in attempts)
        failure = CompressError(f"{path.name} could not be exported: {causes}")
        for each in attempts:
            failure.add_note(f"{each.exporter} said:\n{each.chatter}")
        raise failure
    if len(correct) == 1:
        return correct[0]
    from evaluators.latency import LatencyConfig, compare

    quick = LatencyConfig(batch=batch, seconds=0, max_seconds=20, precision=0.05)
    dynamo, torchscript = correct
    ratio = compare(dynamo.file, torchscript.file, quick)
    best, other = dynamo, torchscript
    if ratio["median"] > CLEARLY_FASTER:
        best, other = torchscript, dynamo
    best.relative_time = 1.0
    other.relative_time = ratio["median"] if other is dynamo else 1 / ratio["median"]
    return best
