"""The strings in which the reference implementation writes the stages of a MnasNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.core.errors import InputError
from spaces.architecture import Architecture, Choice, either

if TYPE_CHECKING:
    from spaces.mnasnet.space import MnasNet

MNASNET_A1 = (
    "r1_k3_s11_e1_i32_o16_noskip",
    "r2_k3_s22_e6_i16_o24",
    "r3_k5_s22_e3_i24_o40_se0.25",
    "r4_k3_s22_e6_i40_o80",
    "r2_k3_s11_e6_i80_o112_se0.25",
    "r3_k5_s22_e6_i112_o160_se0.25",
    "r1_k3_s11_e6_i160_o320_noskip",
)
"""Figure 7 of the paper: one operation, kernel, width and depth for each stage."""

MNASNET_B1 = (
    "r1_k3_s11_e1_i32_o16_noskip",
    "r3_k3_s22_e3_i16_o24",
    "r3_k5_s22_e3_i24_o40",
    "r3_k5_s22_e6_i40_o80",
    "r2_k3_s11_e6_i80_o96",
    "r4_k5_s22_e6_i96_o192",
    "r1_k3_s11_e6_i192_o320_noskip",
)
"""The network found without squeeze-excite."""

_STRING = re.compile(
    r"r(?P<r>\d+)_k(?P<k>\d+)_s(?P<s>\d\d)_e(?P<e>\d+)_i(?P<i>\d+)_o(?P<o>\d+)"
    r"(?P<conv>_conv)?(_se(?P<se>[\d.]+))?(_(?P<skip>noskip|pool))?"
)
_OPERATIONS = {"1": "dwconv", "3": "mbconv3", "6": "mbconv6"}
_SKIPS = {None: "identity", "noskip": "none", "pool": "pool"}


def to_strings(space: MnasNet, arch: Architecture) -> list[str]:
    """Return a string for each stage: layers, kernel, stride, expansion, input, output, squeeze-excite, skip."""
    expansions = {name: ratio for ratio, name in _OPERATIONS.items()}
    skips = {name: word for word, name in _SKIPS.items()}
    channels = space.config.stem
    found = []
    for stage, row in enumerate((rows[0] for rows in space.rows(arch).blocks), 1):
        choice = {key: arch[f"stage{stage}.{key}"] for key in ("operation", "layers", "se")}
        words = [f"r{choice['layers']}", f"k{row.kernel}", f"s{row.stride}{row.stride}"]
        words += [f"e{expansions.get(str(choice['operation']), '1')}", f"i{channels}", f"o{row.out}"]
        words += ["conv"] * (row.operation == "conv") + [f"se{choice['se']}"] * bool(choice["se"])
        skip = skips[row.skip]
        found.append("_".join(words + ([skip] if skip else [])))
        channels = row.out
    return found


def from_strings(space: MnasNet, code: Any) -> Mapping[str, Choice]:
    """Return the choices that a list of strings stands for; InputError with everything that does not fit."""
    expected = len(space.config.widths)
    if not isinstance(code, list | tuple) or len(code) != expected:
        raise InputError(f"a code of space {space.name} is a list of {expected} strings; got {code!r}")
    choices: dict[str, Choice] = {}
    problems: list[str] = []
    channels = space.config.stem
    for stage, text in enumerate(code, 1):
        found = _STRING.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            problems.append(f"stage{stage}: got {text!r}; allowed strings like 'r3_k5_s22_e3_i24_o40_se0.25_noskip'")
            continue
        problems += _misfits(space, stage, found, channels)
        channels = int(found["o"])
        choices |= {f"stage{stage}.{key}": choice for key, choice in _choices(space, stage, found).items()}
    if problems:
        raise InputError(*problems)
    return choices


def _misfits(space: MnasNet, stage: int, found: re.Match[str], channels: int) -> list[str]:
    """Name the parts of a stage's string that the space fixes, or that name a width it does not have."""
    stride = space.config.strides[stage - 1]
    expansions: tuple[Choice, ...] = ("e1",) if found["conv"] else ("e1", "e3", "e6")
    allowed: dict[str, tuple[Choice, ...]] = {
        "s": (f"s{stride}{stride}",),
        "e": expansions,
        "i": (f"i{channels}",),
        "o": tuple(f"o{width}" for width in dict.fromkeys(space.widths(stage))),
    }
    return [
        f"stage{stage}: got {key}{found[key]}; allowed {either(words)}"
        for key, words in allowed.items()
        if f"{key}{found[key]}" not in words
    ]


def _choices(space: MnasNet, stage: int, found: re.Match[str]) -> dict[str, Choice]:
    widths = space.widths(stage)
    out = int(found["o"])
    return {
        "operation": "conv" if found["conv"] else _OPERATIONS.get(found["e"], found["e"]),
        "kernel": int(found["k"]),
        "se": float(found["se"] or 0),
        "skip": _SKIPS[found["skip"]],
        "filters": space.config.filters[widths.index(out)] if out in widths else out,
        "layers": int(found["r"]),
    }
