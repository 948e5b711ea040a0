"""An ONNX file and the files that hold its weights, wherever symbolic links put them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from compress.core.errors import InputError


def parts(path: Path) -> dict[str, Path]:
    """Return the real files of an ONNX model by the names that they have to each other, the model itself first.

    Weights are looked for beside `path`, then beside what it links to.

    Raises:
        InputError: there is no such file, it is no ONNX model, or its weights are not there.
    """
    import onnx

    if not path.is_file():
        raise InputError(f"{path}: there is no such ONNX file")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own exception class differs between its implementations
        raise InputError(f"{path}: not a readable ONNX file (corrupt or truncated)") from error
    places = sorted(set(_places(graph)))
    found = {place: _beside(path, place) for place in places}
    missing = [str(path.parent / place) for place, file in found.items() if file is None]
    if missing:
        raise InputError(f"{path}: its weights are in {', '.join(missing)}, which is not there")
    return {path.name: path.resolve()} | {place: file.resolve() for place, file in found.items() if file is not None}


def _places(graph: Any) -> Iterator[str]:
    """Yield where the weights of a graph, and of the graphs in its nodes, are kept."""
    import onnx

    constants = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*graph.initializer, *constants]:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield from (entry.value for entry in tensor.external_data if entry.key == "location")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _places(inner)


def _beside(path: Path, place: str) -> Path | None:
    """Return the file called `place` in the folder of `path` or of a file that it links to."""
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise InputError(f"{path}: its weights are said to be in {place!r}; allowed: a place below the file's folder")
    while True:
        if (path.parent / place).is_file():
            return path.parent / place
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()


@contextmanager
def together(path: Path) -> Iterator[Path]:
    """Yield an ONNX file that has its weights beside it as plain files, which ONNX Runtime insists on.

    That is `path` itself, or hard links (copies from another disk) in a temporary folder where links scatter them.
    Raises as `parts` does.
    """
    files = parts(path)
    if all(path.resolve().parent / name == file for name, file in files.items()):
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(file, target)
        yield Path(folder) / path.name
