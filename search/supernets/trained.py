"""A trained supernet on disk: its weights and what they were trained on, so that searches can start from it later."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.core.atomic import replacing, write_json
from compress.core.config import Config
from compress.core.errors import InputError, reason_of
from compress.core.problems import under, validated
from compress.core.tensors import restore
from evaluators.datasets import Data
from evaluators.datasets.holdout import labels_of, with_holdout
from evaluators.tasks import Task, TaskSection
from search.supernets.method import MethodSection, SupernetMethod, seeded
from spaces.architecture import Architecture
from spaces.checkpoint import refuse_infinite
from spaces.checkpoint_file import read_safetensors
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet

FOLDER = "supernet"
_MANIFEST, _WEIGHTS = "supernet.json", "weights.safetensors"


class _SpaceRecord(Config):
    name: str
    options: dict[str, Any]


class _Manifest(Config):
    """The content of supernet.json."""

    schema_version: Literal[1] = Field(alias="schema")
    space: _SpaceRecord
    method: MethodSection
    task: TaskSection
    num_outputs: int
    input_size: list[int]
    seed: int
    holdout: float = Field(gt=0, lt=1)
    samples: int
    labels: str
    found: dict[str, Any] | None
    ratings: dict[str, Any] | None
    details: dict[str, Any]


@dataclass
class TrainedSupernet:
    """A supernet with trained weights, and what has to be the same where architectures are judged by them.

    Attributes:
        space: whose weights are shared.
        method: that trained them.
        task: that they were trained for.
        seed: decides, with `holdout`, which training samples were held out.
        holdout: share of the training samples that no weight has learnt from.
        samples: how many training samples there were before that.
        labels: hash of their labels in order, which tells the data apart from others.
        supernet: with its weights.
        found: the architecture that the training itself has found, if the method finds one.
        ratings: what a rater looks up, if the method has rated everything there is.
        details: what the report tells.
        digest: stands for the weights, once they are on disk.
    """

    space: Space
    method: SupernetMethod
    task: Task
    seed: int
    holdout: float
    samples: int
    labels: str
    supernet: Supernet
    found: Architecture | None = None
    ratings: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def save(self, folder: Path) -> None:
        """Write everything to `folder`, the manifest last, each file atomically."""
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.supernet.state_dict().items()}
        with replacing(folder / _WEIGHTS) as temporary:
            save_file(state, temporary)
        options = self.space.config.model_dump(mode="json", exclude_defaults=True)
        manifest = {
            "schema": 1,
            "space": {"name": self.space.name, "options": options},
            "method": self.method.model_dump(mode="json"),
            "task": self.task.config.model_dump(mode="json"),
            "num_outputs": self.task.num_outputs,
            "input_size": list(self.task.input_size),
            "seed": self.seed,
            "holdout": self.holdout,
            "samples": self.samples,
            "labels": self.labels,
            "found": None if self.found is None else dict(self.found),
            "ratings": self.ratings,
            "details": self.details,
        }
        write_json(folder / _MANIFEST, manifest)

    @classmethod
    def load(cls, path: Path, key: str) -> TrainedSupernet:
        """Open the trained supernet at `path`: its folder, or the directory of the run that trained it.

        Raises:
            InputError: naming the recipe's `key`, for none, damaged files, or weights that do not fit.
        """
        folder = next((each for each in (path, path / FOLDER) if (each / _MANIFEST).is_file()), None)
        if folder is None:
            raise InputError(
                f"{key}: {str(path)!r} holds no trained supernet; name the directory of a run with a section supernet"
            )
        content = _read(folder / _MANIFEST, key)
        space = create(content.space.name, content.space.options)
        task = content.task.of_model(content.num_outputs, tuple(content.input_size))
        space.default_task = task
        with seeded(content.seed):
            supernet = content.method.make(space, task)
        state = read_safetensors(folder / _WEIGHTS, key)
        refuse_infinite(supernet, state, str(folder), key)
        try:
            restore(supernet, state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{key}: the weights in {str(folder)!r} do not fit the supernet: {reason}") from error
        return cls(
            space=space,
            method=content.method,
            task=task,
            seed=content.seed,
            holdout=content.holdout,
            samples=content.samples,
            labels=content.labels,
            supernet=supernet.eval(),
            found=None if content.found is None else space.check(content.found),
            ratings=content.ratings,
            details=content.details,
            digest=_digest(folder / _WEIGHTS),
        )

    def check_space(self, space: Space, key: str) -> None:
        """Raise InputError where `space` is not the one that the weights are of."""
        ours, other = ((each.name, each.config.model_dump(mode="json")) for each in (self.space, space))
        if ours != other:
            differ = sorted(name for name in {*ours[1], *other[1]} if ours[1].get(name) != other[1].get(name))
            what = f"option {differ[0]}" if ours[0] == other[0] else f"space {self.space.name}, not {space.name}"
            raise InputError(f"{key}: the supernet was trained for another space; differs in: {what}")

    def split(self, data: Data, key: str) -> Data:
        """Return `data` with, as its test samples, those that no weight has learnt from.

        Raises:
            InputError: they are not the data that the supernet was trained on.
        """
        assert data.train is not None
        samples, labels = fingerprint(data)
        if (samples, labels) != (self.samples, self.labels):
            raise InputError(
                f"{key}: the supernet was trained on other data ({self.samples} training images, here {samples}; "
                "the same ones tell which were held out); name the data, limits and seed that it was trained with"
            )
        return with_holdout(data, self.holdout, self.seed)


def fingerprint(data: Data) -> tuple[int, str]:
    """Return the number of training samples and a hash of their labels in order."""
    assert data.train is not None
    labels = labels_of(data.train)
    return len(labels), hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read(path: Path, key: str) -> _Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {str(path)!r} cannot be read: {reason_of(error)}") from error
    return validated(_Manifest, content, under(f"{key}: {str(path)!r}  "))
