"""The supernet of HyTra: the sampled path alone runs, blocks run alone, cut-outs compute the same."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.errors import InputError
from compress.testing.spaces import enliven
from spaces.hytra import HyTra
from spaces.hytra.block import Block
from spaces.hytra.supernet import HyTraSupernet
from spaces.registry import create

# the CIFAR preset at a quarter of its width
NARROW = {**HyTra.presets["cifar"].options, "channels": (16, 32, 64, 128), "head_dim": 8, "stem_channels": 16}


def shuffled(**options: Any) -> tuple[HyTra, HyTraSupernet]:
    """Return a space and its supernet, with every norm's weights and statistics drawn at random."""
    space = create("hytra", {**NARROW, **options})
    torch.manual_seed(0)
    supernet = space.supernet()
    enliven(supernet)
    assert isinstance(space, HyTra) and isinstance(supernet, HyTraSupernet)
    return space, supernet


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_architectures_compute_what_their_cut_outs_compute(images: Tensor) -> None:
    space, supernet = shuffled()
    generator = random.Random(0)
    for _ in range(15):
        supernet.activate(space.sample(generator))
        network = supernet.train().extract()
        assert network.training
        torch.testing.assert_close(supernet(images), network(images), rtol=1e-5, atol=1e-5)
        # the step above moved the running statistics of both by the same
        torch.testing.assert_close(supernet.eval()(images), network.eval()(images), rtol=1e-5, atol=1e-5)


def test_only_the_weights_of_the_path_are_trained(images: Tensor) -> None:
    space, supernet = shuffled()
    for code in ("555 444 321 010", "444 322 222 222", "000 000 111 111"):
        arch = space.parse(code)
        supernet.activate(arch)
        supernet.zero_grad(set_to_none=True)
        supernet(images).sum().backward()
        used = sum(parameter.numel() for parameter in supernet.parameters() if parameter.grad is not None)
        assert used == space.cost(arch)["params"]


def test_every_weight_but_the_first_layers_larger_entries_can_be_reached(images: Tensor) -> None:
    space, supernet = shuffled(layers=3, blocks=3, attention_scales=4, channels=(32, 64, 128, 256))
    for arch in space:
        supernet.activate(arch)
        for tensor in supernet.inherited(arch).values():
            tensor.fill_(7)
    left = {name for name, tensor in supernet.state_dict().items() if not bool((tensor == 7).all())}
    assert all(name.startswith("stages.0.layers.0.") and ".down." in name for name in left)


def test_a_cut_out_owns_its_weights(images: Tensor) -> None:
    space, supernet = shuffled()
    arch = space.parse("555 444 321 010")
    before = supernet.eval().extract(arch)
    assert not before.training
    logits = before(images)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert torch.equal(before(images), logits)


def test_switching_back_gives_the_same_answer_and_the_same_state(images: Tensor) -> None:
    space, supernet = shuffled()
    names = list(supernet.state_dict())
    supernet.eval().activate(space.parse("555 444 321 010"))
    first = supernet(images)
    supernet.activate(space.parse("000 000 000 000"))
    assert not torch.equal(supernet(images), first)
    supernet.activate(space.parse("555 444 321 010"))
    assert torch.equal(supernet(images), first)
    assert list(supernet.state_dict()) == names


def test_a_copy_runs_its_own_weights(images: Tensor) -> None:
    space, supernet = shuffled()
    supernet.eval().activate(space.parse("555 444 321 010"))
    target = copy.deepcopy(supernet)
    logits = supernet(images)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert torch.equal(target(images), logits)


def test_blocks_run_alone_add_up_to_the_network(images: Tensor) -> None:
    space, supernet = shuffled()
    arch = space.parse("554 332 110 001")
    supernet.eval().activate(arch)
    features = by_path = supernet.stem(images)
    for index, path in enumerate(((5, 5, 4), (3, 3, 2), (1, 1, 0), (0, 0, 1))):
        features = supernet.forward_block(index, features)
        by_path = supernet.forward_block(index, by_path, path)
        assert torch.equal(features, by_path)
    head = supernet.heads[0]
    torch.testing.assert_close(head(features.mean((2, 3))), supernet(images))


def test_every_path_of_a_block_runs_on_what_the_block_before_hands_on(images: Tensor) -> None:
    space, supernet = shuffled()
    stem = supernet.stem(images[:1])
    for path in space.block_paths(3, searched=True):
        features = supernet.forward_block(0, stem, path)
        scale = space.fabric.place(path[-1])[0]
        assert features.shape[1:] == (NARROW["channels"][3 - scale], 4 * 2**scale, 4 * 2**scale)
    for path in space.block_paths(scale, searched=True):
        supernet.forward_block(1, features, path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ((4, 4), r"a path through this block has 3 codes; got \[4, 4\]"),
        ((5, 4, 4), r"path \[5, 4, 4\] through this block: got code 5; allowed 2, 3 or 4"),
        ((4, 0, 0), r"path \[4, 0, 0\] through this block: got code 0; allowed 2, 3 or 4"),
        ((4, 4, 9), r"path \[4, 4, 9\] through this block: got code 9; allowed 2, 3 or 4"),
    ],
)
def test_a_path_that_does_not_follow_is_refused(path: tuple[int, ...], sentence: str) -> None:
    _, supernet = shuffled()
    features = torch.rand(1, 32, 16, 16)
    with pytest.raises(InputError, match=sentence):
        supernet.forward_block(1, features, path)


def test_blocks_of_fewer_scales_have_weights_for_those_only(images: Tensor) -> None:
    space, supernet = shuffled(layers=4, blocks=2, block_scales=(3, 2))
    assert isinstance(supernet.stages[1], Block)
    codes = [[name for name, _ in layer.named_children()] for layer in supernet.stages[1].layers]
    assert codes == [["0", "1", "2", "3"]] * 2
    for arch in space:
        supernet.activate(arch)
        assert supernet(images[:2]).shape == (2, 10)
    with pytest.raises(InputError, match="got code 3; allowed none, since these features are larger"):
        supernet.forward_block(1, torch.rand(1, 32, 16, 16), (3, 3))


def test_the_retraining_version_has_no_supernet() -> None:
    with pytest.raises(InputError, match="space hytra has a supernet in version: search only; got version: retrain"):
        create("hytra", {"version": "retrain"}).supernet()


def test_nothing_runs_before_an_architecture_is_active(images: Tensor) -> None:
    _, supernet = shuffled()
    with pytest.raises(ValueError, match="activate an architecture first"):
        supernet(images)
    with pytest.raises(ValueError, match="activate an architecture first, or give a path"):
        supernet.forward_block(0, supernet.stem(images))
