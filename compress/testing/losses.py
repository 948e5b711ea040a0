"""What distillation relies on in a loss."""

from __future__ import annotations

import torch

from compress.distill.losses import LossConfig


def check_loss(config: LossConfig) -> None:
    """Combine random outputs of a student and a teacher by the loss of `config`.

    Raises:
        AssertionError: the loss is no finite scalar, gives the student no gradient, changes what it is given, or
            differs from one time to the next.
    """
    name = config.loss
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    student.requires_grad_()
    kept = student.detach().clone(), teacher.clone()
    found = []
    for _ in range(2):
        loss = config.combine(student, teacher, torch.ones(()))
        assert loss.shape == () and bool(torch.isfinite(loss)), f"loss {name} is no finite scalar; got {loss}"
        gradient = torch.autograd.grad(loss, student, allow_unused=True)[0] if loss.requires_grad else None
        assert gradient is not None and bool(gradient.abs().sum() > 0), f"loss {name} gives the student no gradient"
        found.append((loss.detach(), gradient))
    assert torch.equal(student.detach(), kept[0]) and torch.equal(teacher, kept[1]), (
        f"loss {name} changes the outputs that it is given"
    )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), (
        f"loss {name} differs for the same outputs"
    )
    equal = config.combine(teacher, teacher, torch.zeros(()))
    assert bool(torch.isfinite(equal)), f"loss {name} is not finite where student and teacher agree"
