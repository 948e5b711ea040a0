"""A small trained network as an ONNX file, and the images that it is quantised by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.bundle import Bundle, open_model
from compress.export.quick import export_quickly
from compress.quantize.choose import Choice
from compress.quantize.config import QuantizeConfig
from compress.quantize.float_file import FloatFile
from compress.quantize.images import images_of
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.datasets import Data
from evaluators.datasets.digits import DigitsConfig
from evaluators.latency.measure import Comparison, LatencyConfig
from evaluators.latency.processor import Processor
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

SHAPES = {"options": {"depth": 8}, "arch": "16/16-16/32-32/64-64"}
VNNI = Processor("x86_64", ("avx2", "avx512f", "avx512_vnni"))


@dataclass
class Trained:
    """A model, its data, and the file it was exported to."""

    bundle: Bundle
    data: Data
    file: Path

    def source(self, folder: Path, file: Path | None = None) -> FloatFile:
        """Return the file as the quantiser takes it."""
        weights = {name: value.detach().numpy() for name, value in self.bundle.model.named_parameters()}
        return FloatFile.prepare(file or self.file, folder, weights)

    def choice(self, folder: Path, file: Path | None = None, most: float = 0.5, **config: Any) -> Choice:
        """Return a choice among ways for this model, on a processor with VNNI."""
        few = {} if config.get("method") == "dynamic" or config.get("types") == "fp16" else {"calibration": 64}
        section = QuantizeConfig(**{"judged": 300, **few, **config})
        source = self.source(folder, file)
        images = images_of(self.data, section, 0)
        return Choice(section, source, images, self.data.task, VNNI, LatencyConfig(), most, folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A ResNet-8 that knows the digits."""
    model = ModelConfig(source="space", name="resnet_shapes", kwargs=SHAPES)
    data = DigitsConfig(name="digits", image_size=16, limit_train=800, batch_size=32, augment="none")
    opened = open_model(model, data, 0, DEFAULT)
    assert opened.data is not None
    with torch.random.fork_rng():
        fit(opened.bundle.model, opened.data, TrainConfig(epochs=3, lr=3e-3), device="cpu", seed=0)
    file = tmp_path_factory.mktemp("quantize") / "model.onnx"
    export_quickly(opened.bundle.model, opened.bundle.example_inputs(2), file, opened.bundle.task)
    return Trained(opened.bundle, opened.data, file)


@pytest.fixture
def timed_as(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Let every file of fewer bits be so many times as fast as the float one, without timing anything."""

    def settle(ratio: float) -> None:
        def answer(files: list[Path], config: LatencyConfig) -> Comparison:
            found = {"median": ratio, "ci95": [ratio - 0.01, ratio + 0.01], "blocks": 9, "clock": "wall"}
            return Comparison([], [found] * (len(files) - 1))

        monkeypatch.setattr("compress.quantize.choose.interleave", answer)

    yield settle
