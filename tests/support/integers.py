"""Integers that this machine's processor multiplies right: where it lacks VNNI, weights of 8 bits saturate."""

from __future__ import annotations

from compress.quantize.number_types import NumberTypes, types_for
from evaluators.latency.processor import processor
from evaluators.latency.targets.local import LocalTarget

EXACT: NumberTypes = types_for(processor(LocalTarget()))[0]
