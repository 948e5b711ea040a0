"""Data sets, one file each, and the batches that come out."""

from __future__ import annotations

from evaluators.datasets.batch import Batch
from evaluators.datasets.dataset import DataConfig, DataFacts, Dataset, datasets
from evaluators.datasets.loaders import Data, Loader
from evaluators.datasets.preprocessing import Preprocessing

__all__ = ["Batch", "Data", "DataConfig", "DataFacts", "Dataset", "Loader", "Preprocessing", "datasets"]
