"""What distillation relies on in a loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compress.distill.layers import Seen, Watched
from compress.distill.losses import Guide, LossConfig, Sides
from evaluators.datasets.batch import Batch, tensors_in
from evaluators.tasks import DEFAULT, Task


def check_loss(
    config: LossConfig,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    batch: Batch | None = None,
    task: Task | None = None,
) -> None:
    """Let a student learn from a teacher by the loss of `config`.

    Args:
        config: the loss; a recipe's names of layers have to be those of the two models.
        student: with the layers that the loss looks at; None: a small convolutional network.
        teacher: the same; None: another such network.
        batch: of inputs of both; None: random images (6, 3, 8, 8) of four classes.
        task: of the models; None: classification of such images.

    Raises:
        AssertionError: the loss is no finite scalar, gives the student no gradient or the teacher one, changes what it
            is given, or differs from one time to the next; or the share of the labels is not in 0..1.
    """
    name, task = config.loss, task or DEFAULT.bind(4, (3, 8, 8))
    student, teacher = student or _small(0), (teacher or _small(1)).eval()
    batch = batch or Batch(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 4)
    assert 0 <= config.label_share <= 1, f"loss {name} leaves the labels a share of {config.label_share}"
    first, again = (_learnt(config, student, teacher, batch, task) for _ in range(2))
    assert torch.equal(first[0], again[0]), f"loss {name} differs for the same outputs"
    assert all(torch.equal(one, other) for one, other in zip(first[1], again[1], strict=True)), (
        f"loss {name} gives other gradients for the same outputs"
    )
    equal, _ = _learnt(config, copy.deepcopy(teacher), teacher, batch, task, learning=False)
    assert bool(torch.isfinite(equal)), f"loss {name} is not finite where student and teacher agree"


def _learnt(
    config: LossConfig, student: nn.Module, teacher: nn.Module, batch: Batch, task: Task, learning: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and its gradients by the student's parameters that it hangs on."""
    name, before = config.loss, [each.clone() for each in teacher.state_dict().values()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        term = config.make(Sides(student.eval(), [Guide("dense", teacher)], task, lambda: batch.part(0, 2)))
        given = Watched(student, term.student_layers, task).see(lambda: task.forward(student, batch))
        layers = term.teacher_layers.get("dense", ())
        with torch.no_grad():
            taught = Watched(teacher, layers, task).see(lambda: task.forward(teacher, batch))
        kept = [_copies(each) for each in (given, taught)]
        loss = term(given, {"dense": taught}, batch, 0)
    assert loss.shape == () and bool(torch.isfinite(loss)), f"loss {name} is no finite scalar; got {loss}"
    assert all(
        torch.equal(one, other)
        for each, copies in zip((given, taught), kept, strict=True)
        for one, other in zip(_copies(each), copies, strict=True)
    ), f"loss {name} changes the outputs that it is given"
    assert all(torch.equal(one, other) for one, other in zip(before, teacher.state_dict().values(), strict=True)), (
        f"loss {name} changes the teacher"
    )
    weights = [each for each in student.parameters() if each.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
    gradients = [each for each in found if each is not None]
    if learning:
        moved = sum(float(each.abs().sum()) for each in gradients)
        assert moved > 0, f"loss {name} gives the student no gradient"
    return loss.detach(), gradients


def _copies(seen: Seen) -> list[Tensor]:
    parts = (seen.tensor, dict(seen.features), dict(seen.received))
    return [tensor.detach().clone() for tensor in tensors_in(parts)]


def _small(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        )
