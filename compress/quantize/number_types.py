"""Which integers a processor multiplies fast and right."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.latency.processor import Processor


@dataclass(frozen=True)
class NumberTypes:
    """Types of activations and weights, as ONNX Runtime's quantiser names them.

    Attributes:
        activation: "QUInt8" or "QInt8".
        weight: "QUInt8" or "QInt8".
        reduce_range: whether weights keep to 7 bits, so that sums of two products fit 16 bits.
    """

    activation: str
    weight: str
    reduce_range: bool = False

    @property
    def short(self) -> str:
        """Such as U8S8; U8S7 with a reduced range."""
        bits = 7 if self.reduce_range else 8
        return f"{_sign(self.activation)}8{_sign(self.weight)}{bits}"

    @property
    def symmetric_weights(self) -> bool:
        """Whether the zero of weights is 0, so that each channel may have a scale of its own."""
        return self.weight == "QInt8"


def _sign(name: str) -> str:
    return "U" if name.startswith("QU") else "S"


U8S8, U8S7, U8U8, S8S8 = (
    NumberTypes("QUInt8", "QInt8"),
    NumberTypes("QUInt8", "QInt8", reduce_range=True),
    NumberTypes("QUInt8", "QUInt8"),
    NumberTypes("QInt8", "QInt8"),
)


def types_for(processor: Processor) -> tuple[NumberTypes, ...]:
    """Return the types worth trying on a processor.

    x86 multiplies unsigned by signed bytes; signed activations fall back to floats there. Without VNNI it adds two such
    products in 16 bits, which saturate with full weights: those get 7 bits, or both are unsigned (exact, and slower).
    What is not told of its features counts as absent. ARM's kernels are for signed bytes.
    """
    if not processor.x86:
        return (S8S8,)
    return (U8S8,) if processor.vnni else (U8S7, U8U8)
