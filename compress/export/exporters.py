"""Export to ONNX with both of torch's exporters, check the file against the module, keep the faster correct one."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.copies import copied
from compress.core.errors import CompressError, InputError, is_out_of_memory
from compress.core.inputs import ModelInputs
from compress.core.modes import draws_at_random
from compress.core.progress import say
from compress.core.tensors import Inputs, mapped, tensors_in
from compress.export.checks import Check, Flat, answered, needs_flat
from compress.export.onnx_file import clean, place, read_opset, verify
from compress.export.open_sizes import of_outputs
from compress.export.samples import Samples, samples_of
from compress.export.stand_ins import stand_in
from compress.export.torch_exporters import cause, export_program, export_traced, quiet
from compress.transforms.layers import folded
from evaluators.latency.measure import LatencyConfig, compare
from evaluators.tasks import UNSIZED, Task

EXPORTERS = ("dynamo", "torchscript")
CHECKED_BATCHES = (1, 2, 3, 2)
CLEARLY_FASTER = 1.02
COMPARED_SECONDS = 20.0
"""So long at most the files of both exporters are timed; half of it is usual."""
FIXED = "fixed"


class ExportConfig(Config):
    """How a model becomes an ONNX file."""

    exporter: Literal["auto", "dynamo", "torchscript"] = Field(
        "auto", description="which of torch's exporters; auto tries both and keeps the faster correct file"
    )
    opset: int | None = Field(20, ge=13, le=25, description="ONNX operator set; null for the exporter's own default")
    dynamic_batch: bool = Field(True, description="any batch size at run time")
    dynamic_size: bool = Field(False, description="any height and width of images at run time")
    batch: int = Field(1, ge=1, description="the file's batch size where dynamic_batch is false")
    post_processing: bool = Field(
        True, description="of detectors: boxes, labels and scores; false: what their heads give, without suppression"
    )


class NotWritable(CompressError):
    """Every exporter ended in an error of its own, before any file was compared: no weights would change that."""


@dataclass(frozen=True)
class ExportResult:
    """The exported file and what is known of it.

    `tried` holds for each exporter {"error", "parity_max_rel", "bytes", "seconds", "relative_time"}: why it failed or
    null, and its latency in terms of the kept file's where both were correct. `checked_sizes` are those that were tried
    of the dimensions that the file leaves open: heights and widths of images, or as `model.inputs` names them.
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
    checked_sizes: tuple[tuple[int, ...], ...] = ()

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
    differs: bool = False
    """Whether it failed since the file gives something else than the module."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `ExportResult.tried`."""
        size = sum(each.stat().st_size for each in self.file.parent.iterdir()) if self.error is None else None
        return {
            "error": self.error, "parity_max_rel": self.parity, "bytes": size,
            "seconds": round(self.seconds, 2), "relative_time": self.relative_time,
        }  # fmt: skip


def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: Path | str,
    config: ExportConfig | None = None,
    task: Task = UNSIZED,
    inputs: ModelInputs | None = None,
) -> ExportResult:
    """Write `model` to the ONNX file `path`: complete and verified, or not at all.

    `example_inputs` is one tensor (N, ...), a tuple of positional or a dictionary of keyword arguments. The file calls
    one tensor in or out as `task` does (classification: `input` and `logits`), several by their keys, or input_0,
    input_1, ... and output_0, output_1, ... The batch is dynamic where all inputs share their first dimension, height
    and width of images where `dynamic_size` asks for it; where `inputs` describe what the model takes, they say what is
    open and which values the file is tried on. The file is compared with the module in eval mode on inputs of
    several batch sizes, and several image sizes (each output: max|d| / max|y| <= 1e-4, and no `Task.disagreement`, such
    as another winner of logits), and by the ONNX checker. The module is left as it was. A file of more than 1.5 GB
    comes with its weights in `<path>.data`.

    Raises:
        InputError: `path` cannot be written, `example_inputs` holds no tensor, or the model takes no images of another
            size where `dynamic_size` asks for them.
        CompressError: no exporter made a correct file; the sentence names the cause of each.
    """
    config, path = config or ExportConfig(), Path(path)
    if not any(True for _ in tensors_in(example_inputs)):
        raise InputError("export: example_inputs holds no tensor, and a file without inputs computes nothing")
    started = time.perf_counter()
    own = copied(model).cpu().eval().requires_grad_(False)
    module = task.for_file(own, config.post_processing)
    example = mapped(task.file_inputs(example_inputs), lambda each: each.detach().cpu())
    notes = []
    samples = samples_of(example, inputs, config.dynamic_size, task.input_name)
    if config.dynamic_batch and task.fixed_batch:
        config = config.model_copy(update={"dynamic_batch": False})
        images = "one image" if config.batch == 1 else f"{config.batch} images"
        notes.append(f"the file takes {images} at a time, of fixed size, as files of task {task.name} do")
    elif config.dynamic_batch and not samples.has_batch:
        config = config.model_copy(update={"dynamic_batch": False})
        notes.append("the inputs share no first dimension that could be a batch, so all sizes of the file are fixed")
    larger = samples.other_sizes(module)
    if config.dynamic_size and len(larger) == 1:
        notes.append("the model does not take images of any height and width, so neither does the file")
    if draws_at_random(module, samples.example):
        raise CompressError(
            f"{path.name} could not be exported: the model gives other outputs each time that it is run on one input, "
            "in eval mode as well, so no file can be held against it; such as F.dropout without training=self.training"
        )
    every = _compared(own, module, samples, config, task, larger)
    (_, checks), *others = every
    if others:
        notes.append(
            "what the model gives for the images that its file is compared on says little (it finds nothing, or scores "
            "are alike), so files of what its heads give, or of lower thresholds, were compared as well"
        )
    names = EXPORTERS if config.exporter == "auto" else (config.exporter,)
    data_name = f"{path.name}.data"
    with _folder_beside(path) as folder:
        attempts = [_attempt(name, every, samples, folder / name, data_name, config, task) for name in names]
        other = stand_in(own, module, samples.example, checks) if all(each.differs for each in attempts) else None
        if other is not None:
            why, substitute = other
            notes.append(why)
            others = _compared(
                substitute, task.for_file(substitute, config.post_processing), samples, config, task, larger
            )
            every = [every[0], *others]
            attempts = [
                _attempt(name, every, samples, folder / f"{name}_again", data_name, config, task, blind=True)
                for name in names
            ]
        if config.dynamic_batch and all(each.error is not None for each in attempts):
            single = config.model_copy(update={"dynamic_batch": False})
            fixed = _compared(own, module, samples, single, task, larger)
            again = [
                _attempt(name, fixed, samples, folder / f"{name}_{FIXED}", data_name, single, task) for name in names
            ]
            if any(each.error is None for each in again):
                notes.append(
                    f"the file takes {single.batch} at a time: no file of the model takes any batch size "
                    f"({attempts[0].exporter}: {attempts[0].error}), as where its code makes a number of x.shape[0]"
                )
                config, attempts, (_, checks) = single, again, fixed[0]
        batch = 1 if config.dynamic_batch else checks[0].batch
        best = _fastest(attempts, path, batch, checks[0].images.shape[1:], config.opset)
        tried = {each.exporter: each.to_dict() for each in attempts}
        opset, size = read_opset(best.file), place(best.file, path, data_name)
    if not others and not any(value.any() for check in checks for value in check.expected.values()):
        notes.append("the model answers 0 to every input (an untrained head?), so agreement with it proves nothing")
    if config.opset not in (None, opset):
        notes.append(f"opset {config.opset} was asked for; the {best.exporter} exporter wrote opset {opset}")
    for note in notes:
        say(note)
    return ExportResult(
        path=path, exporter=best.exporter, opset=opset, parity_max_rel=best.parity or 0.0, bytes=size,
        checked_batches=tuple(sorted({each.batch for each in checks})), denormals_zeroed=best.denormals,
        seconds=time.perf_counter() - started, tried=tried, notes=tuple(notes),
        checked_sizes=tuple(sorted({each.sizes for each in checks})) if larger else (),
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


def _compared(
    own: nn.Module, module: nn.Module, samples: Samples, config: ExportConfig, task: Task, larger: Sequence[Any]
) -> list[tuple[nn.Module, list[Check]]]:
    """Return what is written of `module`, which is `own` as files have it, with its checks; then all substitutes."""
    checks = _checks(module, samples, config, task, larger)
    small = folded(module)  # the checks are the answers of its own layers
    flat = _flat(small, samples, config) if needs_flat(small, samples.example) else small
    substitutes = task.substitutes(own, [check.expected for check in checks])
    return [
        (flat, checks),
        *((_flat(folded(each), samples, config), _checks(each, samples, config, task, larger)) for each in substitutes),
    ]


def _checks(
    module: nn.Module, samples: Samples, config: ExportConfig, task: Task, larger: Sequence[Any]
) -> list[Check]:
    """Return the example and inputs like it, each with the module's own answer.

    They are of several batch sizes; the last are of the other sizes `larger` as well.
    """
    batches = CHECKED_BATCHES if config.dynamic_batch else (config.batch,) * 3
    inputs = [samples.draw(batch, seed) for seed, batch in enumerate(batches)]
    sizes = [[each.shape for each in tensors_in(one)] for one in (samples.example, inputs[0])]
    if config.dynamic_batch or sizes[0] == sizes[1]:
        inputs.append(samples.example)
    inputs += [samples.draw(batches[place % len(batches)], 8, other) for place, other in enumerate(larger)]
    open_ones = samples.axes(config.dynamic_batch)
    checks = [answered(module, each, task, open_ones) for each in inputs]
    if len({tuple(each.expected) for each in checks}) > 1:
        raise CompressError("the model returns other outputs for other inputs; a file has the same ones always")
    return checks


def _attempt(
    name: str,
    every: Sequence[tuple[nn.Module, list[Check]]],
    samples: Samples,
    folder: Path,
    data_name: str,
    config: ExportConfig,
    task: Task,
    *,
    blind: bool = False,
) -> Attempt:
    """Export with one exporter into `folder`, clean and verify the file; a failure is recorded, not raised.

    Of `every` module with its checks the first is kept, the others are only verified, and with `blind` alone.
    """
    say(f"exporting with torch's {name} exporter")
    attempt, started = Attempt(name, folder / f"{name}.onnx"), time.perf_counter()
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder.parent) as raw:
        try:
            with quiet() as chatter:
                for place, (module, checks) in enumerate(every):
                    _write(name, module, samples, checks, Path(raw) / "raw.onnx", config)
                    if place == 0:
                        attempt.denormals = clean(Path(raw) / "raw.onnx", attempt.file, data_name, samples.metadata)
                    file = attempt.file if place == 0 else Path(raw) / "raw.onnx"
                    attempt.parity = max(
                        attempt.parity or 0.0, verify(file, [] if blind and place == 0 else checks, task)
                    )
        except Exception as error:  # exporters raise anything; the other one may still do
            if is_out_of_memory(error):
                raise
            attempt.error, attempt.chatter = cause(error), chatter.getvalue()
            attempt.differs = isinstance(error, CompressError)
    attempt.seconds = time.perf_counter() - started
    return attempt


def _write(
    name: str, module: nn.Module, samples: Samples, checks: list[Check], file: Path, config: ExportConfig
) -> None:
    """Call the exporter."""
    traced = _traced(samples, config)
    inputs, outputs = list(checks[0].inputs), list(checks[0].expected)
    tensors = tuple(mapped(list(tensors_in(traced)), Tensor.clone))  # tracing may change them
    args: tuple[Any, ...] = (tensors,) if isinstance(module, Flat) else tensors
    axes = samples.axes(config.dynamic_batch)
    common: dict[str, Any] = {
        "opset_version": config.opset, "input_names": inputs, "output_names": outputs, "verbose": False,
    }  # fmt: skip
    if name == "dynamo":
        shapes: Any = None
        if any(axes):
            shapes = (tuple(samples.dims(axes)),) if isinstance(module, Flat) else tuple(samples.dims(axes))
        export_program(module, args, file, dynamic_shapes=shapes, **common)
    else:
        named = dict(zip(inputs, axes, strict=True)) | of_outputs(checks, axes) if any(axes) else None
        export_traced(copied(module), args, file, dynamic_axes=named, **common)


def _traced(samples: Samples, config: ExportConfig) -> Inputs:
    """Return what is exported on: a batch of 2 where it is dynamic, since older versions of torch keep 1 constant."""
    return samples.draw(2 if config.dynamic_batch else config.batch, seed=7)


def _flat(module: nn.Module, samples: Samples, config: ExportConfig) -> Flat:
    return Flat(module, _traced(samples, config))


def _fastest(attempts: list[Attempt], path: Path, batch: int, size: Sequence[int], opset: int | None) -> Attempt:
    """Return the attempt to keep: torchscript's only where it is clearly faster, so that reruns agree.

    Where only one of them is of the `opset` that was asked for, it is that one: dynamo writes none below 18 of most.

    They are timed on images of `batch` and of `size` (channels, height, width), where the files leave these open.
    """
    correct = [each for each in attempts if each.error is None]
    if not correct:
        causes = "; ".join(f"{each.exporter}: {each.error}" for each in attempts)
        kind = CompressError if any(each.differs for each in attempts) else NotWritable
        failure = kind(f"{path.name} could not be exported: {causes}")
        for each in attempts:
            failure.add_note(f"{each.exporter} said:\n{each.chatter}")
        raise failure
    asked = [each for each in correct if opset in (None, read_opset(each.file))]
    if len(asked or correct) == 1:
        return (asked or correct)[0]
    quick = LatencyConfig(
        batch=batch,
        input_size=tuple(size) or None,
        runs=3,
        seconds=0,
        max_seconds=COMPARED_SECONDS,
        precision=0.05,
    )
    dynamo, torchscript = correct
    ratio = compare(dynamo.file, torchscript.file, quick)
    best, other = dynamo, torchscript
    if ratio["median"] > CLEARLY_FASTER:
        best, other = torchscript, dynamo
    best.relative_time = 1.0
    other.relative_time = ratio["median"] if other is dynamo else 1 / ratio["median"]
    return best
