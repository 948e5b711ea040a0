"""Torch's two exporters to ONNX: called quietly, and what they raise in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.export.torchlib import table_kept

CHATTY_LOGGERS = ("", "torch", "torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")
LOG_SWITCH = "_jit_set_onnx_log_enabled"
LARGE = 1_000_000_000
"""Bytes of weights above which they lie in a file of their own: one of ONNX holds 2 GiB."""


def export_program(module: nn.Module, args: tuple[Any, ...], file: Path, **options: Any) -> None:
    """Call the exporter that goes by `torch.export`, without its optimizer where that has lost a constant."""
    weights = [value for value in module.state_dict().values() if isinstance(value, Tensor)]
    size = sum(each.numel() * each.element_size() for each in weights)
    with table_kept():
        torch.onnx.export(module, args, file, dynamo=True, external_data=size > LARGE, **options)
        if _lacks_values(file):
            torch.onnx.export(module, args, file, dynamo=True, external_data=size > LARGE, optimize=False, **options)


def _lacks_values(file: Path) -> bool:
    """Return whether a node of the ONNX file takes something that nothing before it gives."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    given = {"", *(each.name for each in (*graph.input, *graph.initializer))}
    for node in graph.node:
        if not given.issuperset(node.input):
            return True
        given.update(node.output)
    return False


def export_traced(module: nn.Module, args: tuple[Any, ...], file: Path, **options: Any) -> None:
    """Call torch's TorchScript exporter, in a thread of its own.

    It notes the whole stack of Python at every operation: from within a run, some 50 calls deep, that takes as long
    again as a fifth of the export. A new thread's stack is empty. The kernels that torch's attention and encoder layers
    call in evaluation, which the exporter cannot write, are turned off.
    """
    gradients = torch.is_grad_enabled()  # each thread has its own

    def call() -> None:
        with torch.set_grad_enabled(gradients):
            torch.onnx.export(module, args, str(file), dynamo=False, **options)

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(call).result()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Catch what exporters print, warn and log; yield where it goes."""
    chatter = io.StringIO()
    handlers = [each for name in CHATTY_LOGGERS for each in logging.getLogger(name).handlers]
    streams = [(each, each.stream) for each in handlers if type(each) is logging.StreamHandler]
    with contextlib.ExitStack() as stack:
        switch = getattr(torch._C, LOG_SWITCH, None)
        if switch is not None:  # the exporter turns its log on, which goes past Python's streams to standard output
            switch(False)
            stack.callback(setattr, torch._C, LOG_SWITCH, switch)
            setattr(torch._C, LOG_SWITCH, lambda enabled: None)
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("default")
        stack.callback(lambda: chatter.writelines(f"{each.message}\n" for each in warned))
        stack.enter_context(contextlib.redirect_stdout(chatter))
        stack.enter_context(contextlib.redirect_stderr(chatter))
        for handler, stream in streams:
            handler.setStream(chatter)
            stack.callback(handler.setStream, stream)
        yield chatter


def cause(error: BaseException) -> str:
    """Return the first line of what lies at the root of an exporter's exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((each.strip() for each in str(error).splitlines() if each.strip()), "no message")[:300]
    return line if isinstance(error, CompressError) else f"{type(error).__name__}: {line}"
