from __future__ import annotations

import torch

from compress.distill.losses.logits import LogitsConfig


def test_logit_matching_is_the_mean_square_and_leaves_no_share_to_the_labels() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 2.0], [2.0, -1.0]])
    assert float(LogitsConfig().term(student, teacher)) == 1.25
    assert LogitsConfig().label_share == 0
    shared = LogitsConfig(weight=0.25)
    assert float(shared.term(student, teacher)) == 0.3125 and shared.label_share == 0.75
