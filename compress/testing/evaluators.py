"""What a search relies on in an evaluator."""

from __future__ import annotations

import math
import random

from evaluators.candidates.evaluator import EvaluatorBase, EvaluatorContext


def check_evaluator(config: EvaluatorBase, context: EvaluatorContext) -> None:
    """Evaluate two random architectures of the context's space, one of them twice.

    Raises:
        AssertionError: a metric that is named or wanted is missing or no finite number, or differs for the same seed.
    """
    evaluator, generator = config.make(context), random.Random(0)
    names = evaluator.metrics
    assert names and len(set(names)) == len(names), f"evaluator {config.kind} names its metrics not, or twice: {names}"
    for again in (True, False):
        arch = context.space.sample(generator)
        free = evaluator.free(arch)
        found = free | evaluator.evaluate(arch, set(names), context.seed)
        missing = [name for name in names if name not in found]
        assert not missing, f"evaluator {config.kind} names the metric {', '.join(missing)}, and does not give it"
        wrong = [name for name in names if not math.isfinite(found[name])]
        assert not wrong, f"evaluator {config.kind} gives no finite number for {', '.join(wrong)}"
        if again:
            same = evaluator.free(arch) | evaluator.evaluate(arch, set(names), context.seed)
            assert same == found, f"evaluator {config.kind} gives {same}, and before {found}, for one architecture"
    evaluator.tidy()
