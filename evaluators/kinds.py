"""All kinds of evaluators, as a recipe names them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evaluators.finetune import FinetuneEvaluatorConfig
from evaluators.proxies import ProxyConfig
from evaluators.supernet import SupernetEvaluatorConfig
from evaluators.tabular import TabularConfig
from evaluators.training import TrainEvaluatorConfig

EvaluatorConfig = Annotated[
    TrainEvaluatorConfig | FinetuneEvaluatorConfig | SupernetEvaluatorConfig | TabularConfig | ProxyConfig,
    Field(discriminator="kind"),
]
