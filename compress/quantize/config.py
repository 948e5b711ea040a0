"""The section `quantize` of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from compress.core.config import Config
from compress.distill.finetune import FinetuneConfig
from evaluators.tasks import Task

CALIBRATING = ("calibration", "calibrate")


class QuantizeConfig(Config):
    """How the exported file gets fewer bits, and how much may be lost by it."""

    types: Literal["int8", "fp16"] = Field("int8", description="8-bit integers, or floats of 16 bits")
    method: Literal["auto", "static", "dynamic"] = Field(
        "auto",
        description="static: ranges of activations from images, convolutions too; dynamic: while it runs, matrix "
        "products only; auto: what suits the model, the fastest that is good enough",
    )
    calibration: int = Field(256, ge=1, description="training images that ranges are taken from")
    calibrate: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how a range is found; percentile and entropy leave outliers out, and take longer"
    )
    per_channel: bool = Field(True, description="a scale for each output channel of a weight")
    judged: int = Field(
        2000,
        ge=1,
        description="other training images that files are judged on, at most; with finetune at most half of the others",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="of the main metric there; null: 0.5 points of one in percent, others need a number",
    )
    exclude: tuple[str, ...] = Field((), description="layers that stay float: their names, * for any characters")

    finetune: FinetuneConfig | None = Field(
        None,
        description="trains the model beforehand, rounded in every forward pass as a static file of integers rounds; "
        "the weights are taken where that file is the better for it",
    )

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no metric to judge files by, or no loss of what its models give in files."""
        if not task.metrics:
            return f"files are judged by a metric, and task {task.name} has none; leave it out"
        if self.finetune is not None and not task.gives_tensor:
            return f"finetune: models of task {task.name} have no loss of what they give in a file; leave it out"
        return None

    @field_validator("types", mode="before")
    @classmethod
    def _with_kernels(cls, types: object) -> object:
        if types == "bf16":
            raise ValueError(
                "ONNX Runtime's CPU provider has no kernels of bf16, not for convolutions, products or sums "
                "(tried with version 1.32); got bf16; allowed: int8, fp16"
            )
        return types

    @model_validator(mode="after")
    def _of_integers(self) -> Self:
        of_integers = ("method", *CALIBRATING, "per_channel", "exclude", "finetune")
        if self.types != "int8" and (given := self._given(*of_integers)):
            raise ValueError(f"{given}: of types int8 alone; leave out with {self.types}")
        if self.method == "dynamic" and (given := self._given(*CALIBRATING)):
            raise ValueError(f"{given}: dynamic files take no ranges from images; leave out with method dynamic")
        if self.method == "dynamic" and self.finetune is not None:
            raise ValueError(
                "finetune: trains for the rounding of static files, which is known beforehand; got method dynamic; "
                "allowed: auto, static"
            )
        return self

    def _given(self, *keys: str) -> str:
        return ", ".join(key for key in keys if getattr(self, key) != type(self).model_fields[key].default)

    @property
    def calibrates(self) -> bool:
        """Whether ranges are taken from images in a way that may be tried."""
        return self.types == "int8" and self.method != "dynamic"

    @property
    def shown(self) -> str:
        """The types as people write them."""
        return self.types.upper()
