"""Samples divided into two parts as scikit-learn does, without the seconds that its import takes."""

from __future__ import annotations

from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


def drawn(count: int, held: int, seed: int) -> tuple[Ints, Ints]:
    """Return the places of `count` samples that are left and of the `held`, each as drawn: `ShuffleSplit`'s."""
    order = np.random.RandomState(seed).permutation(count)
    return order[held:], order[:held]


def drawn_by_class(labels: Ints, held: int, seed: int) -> tuple[Ints, Ints]:
    """Return the places that are left and those `held`, as drawn, with each class in its share.

    It is the draw of scikit-learn's `StratifiedShuffleSplit` and `train_test_split(stratify=labels)`. `labels` (N,) may
    be any integers; each has to be there twice, and no more of them than samples in either part.
    """
    generator = np.random.RandomState(seed)
    _, of_sample, counts = np.unique(labels, return_inverse=True, return_counts=True)
    left = _shares(counts, len(labels) - held, generator)
    taken = _shares(counts - left, held, generator)
    parts: tuple[list[Ints], list[Ints]] = [], []
    for each, (some, others) in enumerate(zip(left, taken, strict=True)):
        places = np.flatnonzero(of_sample == each)[generator.permutation(counts[each])]
        parts[0].append(places[:some])
        parts[1].append(places[some : some + others])
    return generator.permutation(np.concatenate(parts[0])), generator.permutation(np.concatenate(parts[1]))


def _shares(counts: Ints, total: int, generator: np.random.RandomState) -> Ints:
    """Return how many of each class make up `total`: its share of `counts`, rounded; ties are drawn."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    missing, rests = int(total - shares.sum()), exact - shares
    for rest in np.unique(rests)[::-1]:
        if missing <= 0:
            break
        tied = np.flatnonzero(rests == rest)
        more = min(len(tied), missing)
        shares[generator.choice(tied, size=more, replace=False)] += 1
        missing -= more
    result: Ints = shares.astype(np.int64)
    return result
