"""Sessions of ONNX Runtime and what they are fed; sent to targets, see `evaluators.latency.agent`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    Request = dict[str, Any]

LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
DESCRIBED = "compress.inputs"
"""Under which a file's metadata tell what is to be known of its inputs, as JSON."""
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class BadInput(Exception):
    """What was asked for cannot be measured: the model or the request is wrong."""


def check_provider(provider: str) -> None:
    """Raise BadInput for a provider that ONNX Runtime has not here."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BadInput(f"provider {provider!r} is not in this onnxruntime; allowed: {', '.join(available)}")


def open_session(path: Path, request: Request, profile: str | None = None) -> Any:
    """Return an inference session on the model at `path`, with threads and optimisation level pinned.

    With `profile`, the beginning of a file's path, it writes down every operator's time until its `end_profiling`.

    With several threads, workers sleep between operators instead of spinning: a spinning worker of one live session
    slows the other one, and on a busy machine of two cores its own: MobileNetV3-Large took twice as long (measured).
    """
    import onnxruntime

    provider = request["provider"]
    check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[request["optimization"]])
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own for each kind of failure
        raise BadInput(
            f"{Path(path).name}: onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}"
        ) from error
    if session.get_providers()[0] != provider:
        raise BadInput(f"provider {provider!r} did not start; onnxruntime fell back to {session.get_providers()[0]}")
    return session


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def ready(path: Path, request: Request, profile: str | None = None) -> tuple[Any, dict[str, Any]]:
    """Return a session (see `open_session`) that has run once, and its inputs."""
    session = open_session(path, request, profile)
    known = told(session, request.get("inputs") or {})
    feed = make_feed(session, request["batch"], request["input_size"], known=known)
    try:
        session.run(None, feed)
    except Exception as error:  # as above
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
        raise BadInput(f"{Path(path).name}: it does not run on inputs {shapes}: {first_line(error)}") from error
    return session, feed


def make_feed(
    session: Any, batch: int, input_size: Sequence[int] | None, seed: int = 0, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return {input name: array} of the model's own shapes, empty for a model without inputs.

    The images are the first input of four dimensions, else the first input, of those with a batch. `batch` and
    `input_size` (the sizes after the batch) fill what they leave open, and what has the same name in other inputs; the
    first dimension of those is no batch where it is called otherwise, and 1 if open. `known` is what `told` gives.
    """
    inputs = session.get_inputs()
    if not inputs:
        return {}
    known = known or {}
    batched = [each for each in inputs if known.get(each.name, {}).get("batched", True)] or inputs
    images = next((each for each in batched if len(each.shape) == 4), batched[0])
    shapes = {each.name: sized(each.name, each.shape, known.get(each.name, {}).get("shape")) for each in inputs}
    filled = fill(images.name, shapes[images.name], batch, input_size)
    named = dict(zip(images.shape[1:], filled[1:]))
    first = {**named, **dict(zip(images.shape[:1], filled))}
    feed = {}
    for each in inputs:
        shape = [size if isinstance(size, int) else named.get(size, size) for size in shapes[each.name]]
        if shape and not isinstance(shapes[each.name][0], int):
            shape[0] = first.get(each.shape[0], 1)
        values = known.get(each.name, {})
        shape = filled if each is images else shape
        feed[each.name] = make_input(each.name, shape, each.type, seed, values.get("low"), values.get("high"))
    return feed


def told(session: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return {input name: {"shape", "batched", "low", "high"}} of what is known: from the file, and what is `given`."""
    found = json.loads(session.get_modelmeta().custom_metadata_map.get(DESCRIBED, "{}"))
    names = [each.name for each in session.get_inputs()]
    for name, values in given.items():
        if name not in names:
            raise BadInput(f"inputs: the model has no input {name!r}; allowed: {', '.join(names)}")
        found[name] = {**found.get(name, {}), **{key: value for key, value in values.items() if value is not None}}
    return found  # type: ignore[no-any-return]


def sized(name: str, shape: Sequence[Any], sizes: Sequence[int] | None) -> list[Any]:
    """Return the shape of an input with what it leaves open filled by `sizes`: all of them, or those after a batch."""
    if sizes is None:
        return list(shape)
    if len(sizes) not in (len(shape), len(shape) - 1):
        raise BadInput(f"input {name!r} has {len(shape)} dimensions {list(shape)}; got sizes {list(sizes)}")
    wanted = [*shape[: len(shape) - len(sizes)], *sizes]
    if any(isinstance(own, int) and own != size for own, size in zip(shape, wanted)):
        raise BadInput(f"input {name!r} has the fixed sizes {list(shape)}; got {list(sizes)}")
    return wanted


def fill(name: str, shape: Sequence[Any], batch: int, input_size: Sequence[int] | None) -> list[int]:
    """Return the shape of the images, open sizes filled with `batch` and those of `input_size`."""
    if shape and isinstance(shape[0], int) and shape[0] != batch:
        raise BadInput(f"input {name!r} has a fixed batch of {shape[0]}; got batch {batch}")
    wanted = [batch, *(input_size or ())]
    if not all(isinstance(size, int) for size in shape[1:]) and len(wanted) != len(shape):
        raise BadInput(
            f"input {name!r} has open sizes {shape[1:]}; got input_size {input_size}; give {len(shape) - 1} sizes, "
            "such as channels, height, width"
        )
    return [size if isinstance(size, int) else wanted[at] for at, size in enumerate(shape)]


def make_input(
    name: str, shape: Sequence[Any], kind: str, seed: int, low: float | None = None, high: float | None = None
) -> Any:
    """Return one input: images as a normalised data set has them (smooth areas, edges, noise), never constant.

    With `low` and `high` values are drawn evenly between them; of whole numbers `high` is the first too large one.
    """
    import numpy as np

    if not all(isinstance(each, int) for each in shape):
        raise BadInput(f"input {name!r} has open sizes {shape} that no other input tells")
    if kind not in DTYPES:
        raise BadInput(f"input {name!r} has type {kind}; allowed: {', '.join(DTYPES)}")
    generator = np.random.default_rng(seed)
    if low is not None or high is not None:
        return ranged(name, shape, DTYPES[kind], generator, low, high)
    values: Any = generator.standard_normal(shape)
    if len(shape) == 4:
        height, width = shape[2:]
        coarse = generator.standard_normal((*shape[:2], -(-height // 8), -(-width // 8)))
        smooth = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
        values = 0.9 * smooth + 0.4 * values
    if DTYPES[kind] in ("uint8", "int8"):
        values = np.clip(values * 40, -128, 127) + (128 if DTYPES[kind] == "uint8" else 0)
    elif not DTYPES[kind].startswith("float"):
        values = values > 0
    return np.asarray(values, dtype=DTYPES[kind])


def ranged(name: str, shape: Sequence[int], kind: str, generator: Any, low: float | None, high: float | None) -> Any:
    """Return values from `low` (None: 0) to `high` (None: one more); of whole numbers up to one below `high`."""
    low = 0 if low is None else low
    high = low + 1 if high is None else high
    if not low < high:
        raise BadInput(f"input {name!r}: low must be below high; got {low:g} and {high:g}")
    if kind.startswith("float"):
        return generator.uniform(low, high, shape).astype(kind)
    return generator.integers(int(low), int(high), shape).astype(kind)
