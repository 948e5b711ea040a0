"""What flows from stage to stage: a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.bundle import Bundle
from spaces.zoo import ModelConfig


@dataclass(frozen=True)
class Artifact:
    """A model in the forms that a stage leaves: a bundle, an ONNX file, both; or nothing, as a search of results does.

    Attributes:
        bundle: the model with its weights.
        onnx: the same model as a file, if it was written; a stage that changes the model leaves it out.
        model: a model that is named and not built yet, as a recipe's or what a search found. The pipeline builds it
            before the first stage that needs one.
        figures: metrics of the file, where it is another model than the bundle, as one of integers, or there is none.
    """

    bundle: Bundle | None = None
    onnx: Path | None = None
    model: ModelConfig | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> Bundle:
        """The bundle; that there is one, the pipeline sees to for every stage with `needs_model`."""
        assert self.bundle is not None
        return self.bundle

    @property
    def metrics(self) -> dict[str, Any]:
        """What has been measured of the model."""
        return {**({} if self.bundle is None else self.bundle.metrics), **self.figures}
