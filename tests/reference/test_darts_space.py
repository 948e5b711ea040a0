"""Published sizes of DARTS networks.

Parameters are those without the auxiliary head, as the code of Liu et al. prints them when it trains: 3.349342 M for
its second-order cells on CIFAR-10, 1.930618 M for the network that it searches with. The others are the roundings of
the papers: Liu et al. 2019 (3.3 M, ImageNet 4.7 M), Chen et al. 2019 (3.4 M), Xu et al. 2020 (3.6 M).
"""

from __future__ import annotations

import pytest

from evaluators.cost import count_params
from spaces.registry import open_preset


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("darts-v2", 3.349342), ("darts-v2", 3.3), ("darts-v2-imagenet", 4.7), ("p-darts", 3.4), ("pc-darts", 3.6)],
)
def test_parameters_are_the_published_ones(preset: str, millions: float) -> None:
    space, arch = open_preset("darts", preset)
    assert arch is not None
    params = space.cost(arch)["params"]
    assert round(params / 1e6, 6 if millions == 3.349342 else 1) == millions
    assert count_params(space.build(arch))[0] == params


def test_the_network_that_is_searched_with_has_the_published_parameters() -> None:
    space, _ = open_preset("darts", "search")
    assert sum(parameter.numel() for parameter in space.supernet().parameters()) == 1_930_618
