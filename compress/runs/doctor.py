"""Look at this installation and this machine, and say what may be wrong."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from compress.core.environment import choose_device, environment, version_of

OURS = ("compress", "search", "spaces", "evaluators")


def examine() -> dict[str, Any]:
    """Return the environment, the width multiple of this machine, ONNX Runtime's providers, and warnings."""
    import onnxruntime

    from evaluators.latency.targets.local import LocalTarget
    from evaluators.latency.width_multiple import width_multiple

    found = environment(choose_device("auto"))
    multiple = width_multiple(LocalTarget())
    found["width_multiple"], found["width_multiple_from"] = multiple.value, multiple.source
    found["onnxruntime_providers"] = onnxruntime.get_available_providers()
    found["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
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
    return warnings


def print_examination(found: dict[str, Any]) -> None:
    """Print `examine`'s result, one fact a line."""
    for key, value in found.items():
        if key == "packages":
            for package, version in value.items():
                print(f"{package:<22} {version or 'not installed'}")
        elif key == "warnings":
            for warning in value:
                print(f"warning: {warning}")
        elif value is not None:
            print(f"{key.replace('_', ' '):<22} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    if not found["warnings"]:
        print("nothing wrong was found")
