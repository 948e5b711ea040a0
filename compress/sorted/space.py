"""The nested sub-networks of a model that is at hand: the channel space over it, with its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.graph.graph import Graph
from evaluators.tasks import Task
from spaces.channels.space import ChannelsConfig, ChannelSpace


class NestedSpace(ChannelSpace):
    """Widths, heads and depths of the model of a bundle as decisions; the model is not copied.

    "SortedNet" (Valipour et al. 2023), section 3: a sub-network keeps the first units of every width and the first
    blocks of every stage.
    """

    name = "channels"
    depth_where_possible = True

    def __init__(self, bundle: Bundle, config: ChannelsConfig) -> None:
        """Follow the widths of the bundle's model.

        Raises:
            InputError: the model cannot be traced, or leaves nothing to decide.
        """
        self._given = bundle
        with blamed_on_sort():
            super().__init__(config)

    @property
    def what(self) -> str:
        """The model as messages name it."""
        return "the model"

    def initial_model(self, task: Task) -> nn.Module:
        """Return the model itself."""
        return self._given.model

    def _traced(self, module: nn.Module) -> Graph:
        return self._given.known.graph(module, self._given.example_inputs())

    def _open(self, task: Task | None, seed: int) -> tuple[nn.Module, Task]:
        own = self._given.task
        if task not in (None, own):
            raise ValueError(f"the model is for {own}, not for {task}")
        return self._given.model, own


@contextmanager
def blamed_on_sort() -> Iterator[None]:
    """Put the section before problems that other keys' names stand before."""
    try:
        yield
    except InputError as error:
        raise InputError(*(_renamed(text) for text in error.problems)) from error


def _renamed(text: str) -> str:
    text = text.replace("space channels: ", "").replace("prune.criterion", "sort.order").replace("option ", "sort.")
    return text if text.startswith("sort") else f"sort: {text}"
