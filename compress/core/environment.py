"""What a result depends on besides the recipe: versions, processor, devices, threads."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "torch-pruning",
    "ray",
    "nni",
)
SMALL_BATCH_MACS = 4e9  # below this a second thread gains less than it loses on a busy machine
CPU_FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Features of processors that multiply bfloat16."""


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(device: str) -> dict[str, Any]:
    """Return the environment that report.json records."""
    import torch

    model, flags = cpu()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version_of(name) for name in ("compress", *PACKAGES)},
        "cpu": model,
        "cpu_flags": flags,
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "device_name": device_name(device),
    }


def cpu() -> tuple[str, list[str]]:
    """Return the processor's name and those of its features that decide how fast a network runs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set(fields.get("flags", fields.get("features", "")).split())
    return fields.get("model name", platform.machine()), [flag for flag in CPU_FLAGS if flag in flags]


def emulates_bfloat16(device: str) -> bool:
    """Return whether `device` is a CPU known to have no instructions for bfloat16: it is slower there than float32."""
    flags = cpu()[1]
    return device == "cpu" and bool(flags) and BFLOAT16_FLAGS.isdisjoint(flags)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_gigabytes() -> float:
    """Return the most memory that this process has held so far, in GiB; 0.0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_name(device: str) -> str | None:
    """Return the name of an accelerator, None for the processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def choose_device(wanted: str) -> str:
    """Return the device for `--device`; `auto` takes the first GPU and else the processor.

    Raises `InputError` for one that is not there.
    """
    import torch

    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if wanted == "auto":
        return there[1] if len(there) > 1 and there[1].startswith("cuda") else "cpu"
    if wanted == "cuda" and "cuda:0" in there:
        return "cuda:0"
    if "," in wanted:
        raise InputError(f"--device  takes one here, since no run trains; got {wanted!r}")
    if wanted not in there:
        near = did_you_mean(wanted, there)
        raise InputError(f"--device  not on this machine; got {wanted!r}; allowed auto, {', '.join(there)}{near}")
    return wanted


def choose_devices(wanted: str) -> list[str]:
    """Return the devices for `--device`: one, or several with commas between them, on all of which models train.

    Raises `InputError` for one that is not there, or that cannot train beside the others.
    """
    found = [choose_device(name.strip()) for name in wanted.split(",")]
    kinds = {name.partition(":")[0] for name in found}
    twice = len(set(found)) < len(found) and kinds != {"cpu"}
    if len(found) > 1 and ("auto" in wanted or len(kinds) > 1 or "mps" in kinds or twice):
        raise InputError(
            f"--device  got {wanted!r}; allowed: one device, or several GPUs such as cuda:0,cuda:1, each once (cpu,cpu "
            "are two processes)"
        )
    return found


def settle_threads(batch_macs: float) -> int:
    """Set torch's threads for batches of `batch_macs` MACs and return their number.

    Small batches run on one thread: with two, a small Swin's update took 0.6 times as long on an idle machine of two
    cores and up to 20 times as long on a busy one. The rule depends on nothing but the recipe and the number of cores,
    so that runs agree; OMP_NUM_THREADS overrules it.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if batch_macs < SMALL_BATCH_MACS else usable_cores())
    return torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for the block.

    For work on small or memory-bound tensors: a second thread saves nothing there, and where another process holds its
    core, the wait for it made the selection on Swin-B five times slower. Results do not depend on the number of cores.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def on_device(model: nn.Module, device: str) -> Iterator[None]:
    """Keep `model` on `device` for the block."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def convolutions(device: str, deterministic: bool) -> Iterator[None]:
    """Decide for the block how a GPU computes: as fast as it can, or with the same bits every time.

    Fast: cuDNN tries its algorithms on the first batch of every shape and keeps the fastest. Deterministic: no trying,
    and only operations that add up in a fixed order, where there is one. The CPU is exact either way.
    """
    import torch

    cudnn: Any = torch.backends.cudnn  # not its `flags`: those switch cuDNN off where they are not told to leave it on
    before = cudnn.benchmark, cudnn.deterministic, torch.get_deterministic_debug_mode()
    cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
    if deterministic and device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.set_deterministic_debug_mode(before[2])
