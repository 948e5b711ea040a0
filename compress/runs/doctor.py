"""Look at this installation and this machine: what is there, what it is for, and what to do where something is not."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from compress.core.environment import BFLOAT16_FLAGS, choose_device, environment, version_of
from compress.core.formatting import file_size

OURS = ("compress", "search", "spaces", "evaluators")
OPTIONAL = {
    "ray": "searches on a cluster, executor: {kind: ray}, and latency of its nodes, target: {ray: LABEL}",
    "nni": "spaces and criteria of NNI, named nni:...",
    "torch-pruning": "its pruners, prune: {kind: torch_pruning}",
    "cmaes": "search strategy cmaes",
    "transformers": "models of source huggingface",
    "tensorboard": "search.tensorboard: true",
    "optuna-dashboard": "a search's study in the browser",
}
"""Packages that only some recipes need, and what for."""
INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
"""Features of processors that multiply 8-bit integers faster than floats, fastest first."""
LITTLE_DISK = 2 * 10**9


@dataclass(frozen=True)
class Check:
    """One thing that was looked for: under which heading, what was found (None: nothing), what for, and what to do."""

    group: str
    name: str
    found: str | None
    purpose: str
    remedy: str = ""

    def line(self, width: int) -> str:
        """Return the check as one line; what to do where nothing was found."""
        if self.found is not None:
            return f"  {self.name:<{width}}  {self.found}  ({self.purpose})"
        return f"  {self.name:<{width}}  missing: {self.remedy}  ({self.purpose})"


def examine() -> dict[str, Any]:
    """Return the environment, the width multiple of this machine, ONNX Runtime's providers, checks, and warnings."""
    import onnxruntime

    from evaluators.latency.targets.local import LocalTarget
    from evaluators.latency.width_multiple import width_multiple

    found = environment(choose_device("auto"))
    multiple = width_multiple(LocalTarget())
    found["width_multiple"], found["width_multiple_from"] = multiple.value, multiple.source
    found["onnxruntime_providers"] = onnxruntime.get_available_providers()
    found["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    found["free_bytes"] = shutil.disk_usage(Path.cwd()).free
    found["checks"] = [asdict(check) for check in (*_machine(found), *_installation(found), *_optional())]
    found["warnings"] = _warnings(found)
    return found


def foreign_owners() -> dict[str, list[str]]:
    """Return which of our four import names another installed distribution provides as well."""
    owners = metadata.packages_distributions()
    return {
        name: others
        for name in OURS
        if (others := sorted({owner for owner in owners.get(name, []) if owner.lower() != "compress"}))
    }


def unmet_requirements() -> list[str]:
    """Return a sentence for each required package that is missing or has a version that is not supported."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("compress") or ()]
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return []
    sentences = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is None:
            sentences.append(
                f"{requirement.name} is not installed; {requirement.name}{requirement.specifier} is needed"
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            sentences.append(f"{requirement.name} is {version}; {requirement.name}{requirement.specifier} is needed")
    return sentences


def install_command(package: str) -> str:
    """Return what installs an optional package: our extra of its name, where there is one."""
    try:
        extras = metadata.metadata("compress").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        extras = []
    return f'pip install "compress[{package}]"' if package in extras else f"pip install {package}"


def _machine(found: dict[str, Any]) -> list[Check]:
    flags = found["cpu_flags"]
    int8 = next((flag for flag in INT8_FLAGS if flag in flags), None)
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "NEON" if "asimd" in flags else None
    device = found["device"] if found["device_name"] is None else f"{found['device']}, {found['device_name']}"
    group = "this machine"
    return [
        Check(group, "processor", f"{found['cpu']}, {found['platform']}", "latency is measured on it by default"),
        Check(group, "vectors", wide, "how fast float models run", "float models run by slow kernels here"),
        Check(
            group,
            "8-bit products",
            int8 and int8.replace("_", " ").upper().replace("ASIMDDP", "dot product"),
            "what makes INT8 models faster",
            "expect INT8 models to be smaller, but hardly faster here",
        ),
        Check(
            group,
            "bfloat16",
            next((flag.replace("_", " ").upper() for flag in flags if flag in BFLOAT16_FLAGS), None),
            "what makes precision: bf16 faster on the CPU",
            "train with precision: 32 here, bf16 is for a GPU",
        ),
        Check(
            group,
            "width multiple",
            f"{found['width_multiple']}, {found['width_multiple_from']}",
            "prune.align: auto makes widths multiples of it",
        ),
        Check(group, "training device", device, "--device names another"),
        Check(
            group,
            "threads",
            f"{found['torch_threads']} of torch on {found['cores']} cores",
            "OMP_NUM_THREADS sets them for training, latency.threads for timing",
        ),
        *(
            [Check(group, "load", str(found["load"]), "above the number of cores, timings are of a busy machine")]
            if found["load"] is not None
            else []
        ),
        Check(group, "free disk space", file_size(found["free_bytes"]), "runs keep the model of every stage"),
        Check(
            group,
            "ssh",
            shutil.which("ssh"),
            'latency of another machine, target: {command: "ssh host python3 -"}',
            "install an SSH client, or use another command",
        ),
    ]


def _installation(found: dict[str, Any]) -> list[Check]:
    packages = found["packages"]
    group = "installation"
    purposes = {
        "compress": "this toolkit",
        "torch": "training and pruning",
        "torchvision": "models and data sets",
        "timm": "models",
        "numpy": "arrays",
        "onnx": "files",
        "onnxruntime": "timing and checking files",
        "onnxscript": "the dynamo exporter",
        "optuna": "searches",
    }
    checks = [Check(group, "python", found["python"], "3.11 or later")]
    for name, purpose in purposes.items():
        needed = "pip install -e . in the source tree" if name == "compress" else f"pip install {name}"
        checks.append(Check(group, name, packages[name], purpose, needed))
    exporters = ["dynamo"] * (packages["onnxscript"] is not None) + ["torchscript"]
    checks.append(Check(group, "exporters", ", ".join(exporters), "export.exporter; auto keeps the faster file"))
    providers = ", ".join(found["onnxruntime_providers"])
    checks.append(Check(group, "providers", providers, "latency.provider; for a GPU install onnxruntime-gpu"))
    return checks


def _optional() -> list[Check]:
    there = {name: version_of(name) for name in OPTIONAL}
    there["tensorboard"] = there["tensorboard"] or version_of("tensorboardX")  # either writes a search's figures
    return [Check("optional", name, there[name], purpose, install_command(name)) for name, purpose in OPTIONAL.items()]


def _warnings(found: dict[str, Any]) -> list[str]:
    warnings = unmet_requirements()
    for name, owners in foreign_owners().items():
        warnings.append(f"the import name {name!r} also belongs to {', '.join(owners)}: install them apart")
    if found["torch_threads"] > found["cores"]:
        warnings.append(f"torch uses {found['torch_threads']} threads on {found['cores']} cores: set OMP_NUM_THREADS")
    if found["load"] is not None and found["load"] > found["cores"]:
        warnings.append(f"the machine is busy (load {found['load']} on {found['cores']} cores): latencies will be high")
    if "avx2" not in found["cpu_flags"] and "x86" in found["platform"]:
        warnings.append("the processor has no AVX2: ONNX Runtime runs its slowest kernels")
    if found["free_bytes"] < LITTLE_DISK:
        warnings.append(f"only {file_size(found['free_bytes'])} are free in {Path.cwd()}: runs may fill it up")
    return warnings


def print_examination(found: dict[str, Any]) -> None:
    """Print `examine`'s result, one fact a line."""
    checks = [Check(**check) for check in found["checks"]]
    width = max(len(check.name) for check in checks)
    for group in dict.fromkeys(check.group for check in checks):
        print(f"{group}:")
        for check in checks:
            if check.group == group:
                print(check.line(width))
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    if not found["warnings"]:
        print("nothing wrong was found")
