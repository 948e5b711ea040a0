"""All kinds of evaluators, as a recipe names them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evaluators.candidates.finetune import FinetuneEvaluatorConfig
from evaluators.candidates.proxies import ProxyConfig
from evaluators.candidates.supernet import SupernetEvaluatorConfig
from evaluators.candidates.tabular import TabularConfig
from evaluators.candidates.train import TrainEvaluatorConfig

EvaluatorConfig = Annotated[
    TrainEvaluatorConfig | FinetuneEvaluatorConfig | SupernetEvaluatorConfig | TabularConfig | ProxyConfig,
    Field(discriminator="kind"),
]
