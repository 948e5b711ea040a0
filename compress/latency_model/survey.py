"""Measure narrowed copies of a model: each as a whole, and where its time goes. Kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.atomic import write_json
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.core.progress import say, track
from compress.core.tensors import Inputs, tensors_in
from compress.export.quick import write_to_time
from compress.graph.apply import apply
from compress.graph.graph import Graph
from compress.graph.plan import make_plan
from compress.latency_model.grid import Network
from compress.latency_model.layers import Layers, Place
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.operators import check_provider, runtime_of, time_operators

VERSION = 2
"""Of what is measured and how; what another version has kept is measured anew."""
SECONDS = 15.0


class Measured(Config):
    """A network that was measured: its time, and that of each place's operators, in ms per batch, and their number."""

    ms: float
    places: list[tuple[Place, float, int]]


class Survey(Config):
    """Networks that were measured in one session."""

    networks: list[Measured]
    clock: str
    contended: bool
    environment: dict[str, Any]


class Surveyor:
    """Measures narrowed copies of one model on one target; what it has measured before, it reads from `cache`.

    Args:
        model: in evaluation mode or not; it is left as it was.
        graph: of the model.
        example_inputs: what `graph` was made with.
        latency: target and settings.
        cache: folder that keeps measurements, None for none.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, example_inputs: Inputs, latency: LatencyConfig, cache: Path | None
    ) -> None:
        self.model, self.graph, self.inputs, self.latency, self.cache = model, graph, example_inputs, latency, cache
        self.classes = {name: type(module).__qualname__ for name, module in model.named_modules()}

    def measure(self, networks: Sequence[Network]) -> Survey:
        """Return what the networks take, all timed in turns in one session.

        Raises:
            InputError: the settings do not suit the model or the target.
            CompressError: a copy could not be exported, or the target failed.
        """
        check_provider(self.latency)
        file = None if self.cache is None else self.cache / f"{self._key(networks)}.json"
        if file is not None and file.is_file():
            return _read(file)
        with tempfile.TemporaryDirectory() as folder:
            files, batch = [], self.latency.batch
            for number, network in enumerate(track(networks, "writing narrowed copies")):
                files.append(Path(folder) / f"{number}.onnx")
                batch = write_to_time(self.narrowed(network), self.inputs, files[-1], batch)
            say(f"timing {len(files)} narrowed copies on {self.latency.target.shown}, operator by operator")
            settings = self.latency.model_copy(update={"batch": batch, "input_size": None, "inputs": {}})
            timed = time_operators(files, settings, min(SECONDS, self.latency.max_seconds))
            found = [
                Measured(ms=each.ms, places=Layers(path, self.classes).times(each.operators))
                for path, each in zip(files, timed.models, strict=True)
            ]
        survey = Survey(networks=found, clock=timed.clock, contended=timed.contended, environment=timed.environment)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, survey.model_dump(mode="json"))
        return survey

    def narrowed(self, network: Network) -> nn.Module:
        """Return a copy of the model with the first units of every group; its weights do not matter."""
        kept = {name: torch.arange(width) for name, width in network.widths.items()}
        return apply(make_plan(self.model, self.graph, kept, dropped=network.dropped), self.model).eval()

    def _key(self, networks: Sequence[Network]) -> str:
        about = {
            "version": VERSION,
            "target": self.latency.target.model_dump(mode="json"),
            **self.latency.model_dump(include={"threads", "batch", "provider", "optimization"}),
            **runtime_of(self.latency),
            "model": str(self.model),
            "tensors": {name: list(value.shape) for name, value in self.model.state_dict().items()},
            "steps": [(step.name, step.module) for step in self.graph.record.steps],
            "inputs": [list(each.shape) for each in tensors_in(self.inputs)],
            "networks": [(dict(each.widths), each.dropped) for each in networks],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def _read(file: Path) -> Survey:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); delete it to measure anew") from error
    return validated(Survey, content)


def default_cache() -> Path:
    """Return the folder of measurements: COMPRESS_CACHE, or else compress in the user's folder of caches."""
    own = os.environ.get("COMPRESS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else base / "compress") / "latency"
