"""Several processes that train one model together: each has the whole model on a device of its own, and learns from
its share of every batch; the gradients are averaged.

A process is told once, by `joined`, that it is one of them; everywhere else `replicas()` says which, until the
training, a block of `shared_training`, is over. Alone, all that is here does nothing. All of them draw the same random
numbers and make the same updates, so that they hold the same weights at any time; number 0 leads: it alone writes files
and evaluates.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.core.batch_norm import norm_layers
from compress.core.errors import CompressError, InputError
from evaluators.datasets import Loader
from evaluators.datasets.batch import Batch
from evaluators.datasets.samples import SampleLoader

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long the others wait for one of them, as for the leader while it evaluates."""
DRIFT = 1e-4
"""By which share the sums of two replicas' weights may differ: devices of another kind round otherwise."""


@dataclass(frozen=True)
class Replicas:
    """This process among those that train one model.

    Attributes:
        number: which of them this is, from 0.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files."""
        return self.number == 0

    def slice(self, samples: int) -> slice:
        """Return the places of this process' share in a batch of `samples`.

        Raises InputError where that cannot be divided.
        """
        each, left = divmod(samples, self.count)
        if left or not each:
            raise InputError(
                f"data.batch_size: {self.count} devices share each batch, and one is of {samples}; allowed: multiples "
                f"of {self.count}, up to the number of training samples"
            )
        return slice(self.number * each, (self.number + 1) * each)

    def share(self, batch: Batch) -> Batch:
        """Return the samples of `batch` that this process learns from."""
        if self.count == 1:
            return batch
        part = self.slice(len(batch))
        return batch.part(part.start, part.stop)

    def led(self, function: Callable[[], T]) -> T:
        """Return what `function` gives in the leader, which alone calls it; any object that can be pickled."""
        if self.count == 1:
            return function()
        found: list[Any] = [function() if self.leads else None]
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        result: T = found[0]
        return result

    @torch.no_grad()
    def align(self, *modules: nn.Module) -> None:
        """Give the parameters and buffers of `modules` the values that they have in the leader."""
        if self.count > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole.view(-1).view(torch.uint8), src=0)  # the backends do not know all types
                    tensor.copy_(whole)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace float tensors, the same ones in every process, by their means over all, in place."""
        if self.count == 1:
            return
        for kind in dict.fromkeys((each.dtype, each.device) for each in tensors):
            alike = [each for each in tensors if (each.dtype, each.device) == kind]
            flat = torch.cat([each.reshape(-1) for each in alike])
            dist.all_reduce(flat)
            flat /= self.count
            for each, mean in zip(alike, flat.split([each.numel() for each in alike]), strict=True):
                each.copy_(mean.view_as(each))

    def average_gradients(self, parameters: Iterable[nn.Parameter], *others: Tensor) -> None:
        """Average the gradients of `parameters`, and `others` with them.

        A parameter that has a gradient in one of the processes has one in all of them afterwards.
        """
        if self.count == 1:
            return
        every = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([parameter.grad is not None for parameter in every], dtype=torch.uint8)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        kept = [parameter for parameter, anywhere in zip(every, used.tolist(), strict=True) if anywhere]
        for parameter in kept:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([*(parameter.grad for parameter in kept if parameter.grad is not None), *others])

    def average_statistics(self, *modules: nn.Module) -> None:
        """Average the running statistics of the batch normalisations that learn them."""
        if self.count > 1:
            layers = [each for module in modules for each in norm_layers(module, frozen=True) if each.training]
            running = [each for layer in layers for each in (layer.running_mean, layer.running_var)]
            self.average([each for each in running if each is not None])

    def mean(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return `values` with each number as the mean over the processes that have one under its name."""
        if self.count == 1:
            return values
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, {name: value for name, value in values.items() if type(value) in (int, float)})
        names = dict.fromkeys(name for each in every for name in each)
        return values | {name: fmean(each[name] for each in every if name in each) for name in names}

    def meet(self) -> None:
        """Wait until all are here, or raise RuntimeError where one has ended; no GPU is asked."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))

    @torch.no_grad()
    def check_alike(self, *modules: nn.Module) -> None:
        """Raise CompressError where the processes no longer hold the same weights."""
        if self.count == 1:
            return
        sizes = [each.detach().double().abs().sum().cpu() for module in modules for each in module.parameters()]
        own = torch.stack([*sizes, torch.tensor(1.0, dtype=torch.float64)])
        low, high = own.clone(), own.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        if bool((high - low > DRIFT * high).any()):
            raise CompressError(
                f"the {self.count} devices no longer hold the same weights, so that their gradients do not belong "
                "together: what the training step does depends on more than the batch and the number of the update"
            )


class Epochs(Protocol):
    """What gives the training batches of an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""


@dataclass(frozen=True)
class _Shares:
    """The share of one replica in the batches of a loader that makes whole ones."""

    loader: Loader
    replicas: Replicas

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process' share of each batch."""
        return map(self.replicas.share, self.loader.epoch(epoch, start))


def shared(loader: Loader, among: Replicas) -> Epochs:
    """Return what gives, by `epoch` as `loader` does, this process' share of each training batch.

    Where samples are read one by one, no more than the share is read.
    """
    if among.count == 1:
        return loader
    if isinstance(loader, SampleLoader):
        return loader.narrowed(among.slice)
    return _Shares(loader, among)


_here = Replicas()
_blocks = 0
_over: Callable[[], None] | None = None


def replicas() -> Replicas:
    """Return what this process is among those that train one model; alone, unless it has joined others."""
    return _here


@contextmanager
def shared_training() -> Iterator[None]:
    """Train inside the block, once or several times; at the end of the outermost one the others are needed no more."""
    global _blocks
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
    if _blocks == 0 and _over is not None:
        _over()


@contextmanager
def joined(
    number: int, count: int, meeting: Path, device: str = "cpu", over: Callable[[], None] | None = None
) -> Iterator[None]:
    """Be number `number` of `count` processes of this machine inside the block, which wait here for one another.

    Args:
        number: which one, from 0.
        count: how many.
        meeting: a file in an empty folder that all of them name; it is made.
        device: where this one computes, such as "cuda:1"; it is PyTorch's current one inside the block.
        over: is called once the training is over; it may leave the block.
    """
    global _here, _over
    with _surroundings(device):
        store = dist.FileStore(str(meeting), count)
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
        _here, _over = Replicas(number, count), over
        sound = False
        try:
            _here.meet()
            yield
            sound = True
        finally:
            _here, _over = Replicas(), None
            leave(sound)


def leave(sound: bool) -> None:
    """End the talk with the others; where it is not `sound`, since one may have ended, without waiting for them.

    NCCL's orderly end is for all at once, and waits; what gives up instead is PyTorch's own, and works with NCCL alone.
    """
    if not dist.is_initialized():
        return
    if sound or "nccl" not in dist.get_backend_config():
        dist.destroy_process_group()
    else:
        giving_up = threading.Thread(target=dist.distributed_c10d._abort_process_group, daemon=True)
        giving_up.start()
        giving_up.join(10.0)


@contextmanager
def _surroundings(device: str) -> Iterator[None]:
    """Let processes of this machine find one another, on `device`; what PyTorch changes for that is put back."""
    name, hook = "GLOO_SOCKET_IFNAME", sys.excepthook
    own = name not in os.environ
    if own:
        os.environ[name] = "lo0" if sys.platform == "darwin" else "lo"
    before = torch.cuda.current_device() if device.startswith("cuda") else None
    if before is not None:
        torch.cuda.set_device(device)
    try:
        yield
    finally:
        sys.excepthook = hook
        if own:
            os.environ.pop(name, None)
        if before is not None:
            torch.cuda.set_device(before)
