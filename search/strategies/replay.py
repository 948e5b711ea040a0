"""State that follows from finished trials one after the other, kept between proposals instead of computed anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from search.strategies.sampler import Choices, Finished

State = TypeVar("State")


class Replay(Generic[State]):
    """A state made by handing it the finished trials in their order.

    The state depends on these trials alone: where they are not those seen before with more at the end (another study,
    or a trial of another process that finished earlier than one seen already), it is made anew.

    Args:
        begin: makes the state before the first trial.
        take: works one more trial into it.
    """

    def __init__(self, begin: Callable[[Choices], State], take: Callable[[State, Finished], None]) -> None:
        self._begin, self._take = begin, take
        self._choices: Choices = {}
        self._seen: list[tuple[int, float]] = []
        self._state: State | None = None

    def after(self, finished: Sequence[Finished], choices: Choices) -> State:
        """Return the state after `finished`; what is returned changes with the next call."""
        trials = [(trial.number, trial.score) for trial in finished]
        if self._state is None or choices != self._choices or trials[: len(self._seen)] != self._seen:
            self._state, self._seen, self._choices = self._begin(choices), [], dict(choices)
        for trial in finished[len(self._seen) :]:
            self._take(self._state, trial)
        self._seen = trials
        return self._state
