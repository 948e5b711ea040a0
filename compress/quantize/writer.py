"""Write a float file with fewer bits: all layers of some kinds, or but some of them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.core.progress import track
from compress.export.onnx_model import feed
from compress.quantize.float_file import MULTIPLYING, FloatFile
from compress.quantize.number_types import NumberTypes
from compress.quantize.quiet import quiet

if TYPE_CHECKING:
    from evaluators.datasets import Loader

Method = Literal["static", "dynamic", "fp16"]

BETWEEN_CONVOLUTIONS = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad",
    "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What integers may pass through. Norms, softmax and exponentials stay float: their values do not fit 8 bits."""
COMPUTING = (*MULTIPLYING, "Add", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Mul")
"""Of those, what rounds by itself; the others hand integers on."""
CALIBRATION_BATCH = 16
"""Images that the calibration runs at once: it holds every activation of theirs."""


@dataclass(frozen=True)
class Way:
    """A way to write a file with fewer bits.

    Attributes:
        method: static, dynamic, or fp16.
        types: of integers; None with fp16.
        operators: which become integers where they can.
        per_channel: whether each channel of a weight has a scale.
        calibrate: how ranges were found; None where none are needed.
    """

    method: Method
    types: NumberTypes | None = None
    operators: tuple[str, ...] = ()
    per_channel: bool = False
    calibrate: str | None = None

    @property
    def name(self) -> str:
        """Such as `static U8S8, all between convolutions`."""
        if self.types is None:
            return "FP16"
        wide = ", and what is between" if len(self.operators) > len(MULTIPLYING) else ""
        return f"{self.method} {self.types.short} of {', '.join(_multiplying(self.operators))}{wide}"


def _multiplying(operators: Sequence[str]) -> list[str]:
    return [each for each in operators if each in MULTIPLYING]


def static(types: NumberTypes, wide: bool, per_channel: bool, calibrate: str) -> Way:
    """Return static quantisation of what multiplies, and (`wide`) of what lies between convolutions."""
    operators = (*MULTIPLYING, *(BETWEEN_CONVOLUTIONS if wide else ()))
    return Way("static", types, operators, per_channel and types.symmetric_weights, calibrate)


def dynamic(types: NumberTypes, per_channel: bool) -> Way:
    """Return dynamic quantisation of products with weights; of convolutions it is slower than floats are."""
    return Way("dynamic", types, ("MatMul", "Gemm"), per_channel and types.symmetric_weights)


def ranges(source: FloatFile, operators: Sequence[str], images: Loader, calibrate: str) -> Any:
    """Return the ranges of activations of `source` over all `images`: onnxruntime's TensorsData."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }

    class One(CalibrationDataReader):  # type: ignore[misc]
        """Gives one batch, by the names of the file's inputs."""

        def __init__(self, values: dict[str, Any]) -> None:
            self.left = [values]

        def get_next(self) -> Any:
            """Return the batch, then None."""
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory(dir=source.prepared.parent) as folder, quiet():
        calibrator = create_calibrator(
            str(source.prepared), list(operators), str(Path(folder) / "augmented.onnx"), methods[calibrate]
        )
        size = source.entries[0].shape[0]  # a name where the file takes any
        fixed = size if isinstance(size, int) else 0
        for batch in track(images.batches(), "calibrating", total=len(images)):
            for piece in batch.split(fixed or CALIBRATION_BATCH):
                if fixed and len(piece) < fixed:
                    continue
                calibrator.collect_data(One(feed(source.path, source.entries, piece.inputs)))
        return calibrator.compute_data()


def write(
    way: Way,
    source: FloatFile,
    target: Path,
    found: Any = None,
    only: Collection[str] = (),
    but: Collection[str] = (),
) -> None:
    """Write `source` to `target` in a way.

    Args:
        way: how.
        source: the float file.
        target: is written.
        found: `ranges`, where the way is static.
        only: nodes that alone become integers; none: all.
        but: nodes that stay float.
    """
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType, quantize_dynamic

    if way.types is None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with quiet():
            onnx.save(convert_float_to_float16(onnx.load(source.path), keep_io_types=True), target)
        return
    weight, activation = (getattr(QuantType, name) for name in (way.types.weight, way.types.activation))
    with quiet():
        if way.method == "dynamic":
            quantize_dynamic(
                str(source.prepared), str(target), list(way.operators), per_channel=way.per_channel,
                reduce_range=way.types.reduce_range, weight_type=weight, nodes_to_quantize=list(only),
                nodes_to_exclude=list(but),
            )  # fmt: skip
            return
        quantizer = QDQQuantizer(
            copy.deepcopy(source.model), way.per_channel, way.types.reduce_range, weight, activation, found,
            list(only), list(but), list(way.operators), {},
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)
