"""What searches, builders and supernets rely on in a search space."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.meta import without_storage
from evaluators.cost import count_macs, count_params
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.space import Space, drawn_by, task_of
from spaces.supernet import Supernet


def check_space(space: Space | str, options: Mapping[str, Any] | None = None, task: Task | None = None) -> None:
    """Run every check of this module on a few random architectures.

    Args:
        space: or its name, with `options`; a small member of it, since some networks are built.
        options: of the space.
        task: what networks are built for; None: a head of five for images of 32 pixels.

    Raises:
        AssertionError: in a sentence, what the space does not hold.
    """
    space = create(space, options) if isinstance(space, str) else space
    task = task or task_of(5, 3, 32)
    archs = drawn(space, 8)
    for arch in archs:
        check_codes(space, arch)
        check_canonical(space, arch, task)
    check_draws(space, archs)
    check_moves(space)
    for arch in archs[:2]:
        check_cost(space, arch, task)
        check_network(space, arch, task)
    try:
        net = space.supernet(task)
    except InputError:
        return  # it has none
    with in_double():
        net = net.double()
        enliven(net)
        for arch in archs[:2]:
            check_supernet(net, arch, images_for(space, arch, task).double())
        check_mixtures(net, archs[0], images_for(space, archs[0], task).double())


def drawn(space: Space, count: int, seed: int = 0) -> list[Architecture]:
    """Return `count` random architectures."""
    generator = random.Random(seed)
    return [space.sample(generator) for _ in range(count)]


def images_for(space: Space, arch: Architecture, task: Task, count: int = 4) -> Tensor:
    """Return normal noise as large as the networks of `arch` take it."""
    side = space.input_size(arch, task.img_size)
    return torch.randn(count, task.in_chans, side, side)


def check_codes(space: Space, arch: Architecture) -> None:
    """An architecture comes back from its choices, from JSON, and, up to its canonical form, from its code."""
    assert space.check(dict(arch)) == arch, f"check changes {dict(arch)}, which it has drawn itself"
    written = json.loads(json.dumps(space.to_dict(arch)))
    assert space.parse(written) == arch, f"to_dict writes {written}, which reads back as another architecture"
    assert space.parse(json.loads(arch.to_json())) == arch, f"{arch.to_json()} reads back as another architecture"
    code = json.loads(json.dumps(space.to_code(arch)))
    assert space.canonical(space.parse(code)) == space.canonical(arch), f"the code {code} is of another architecture"


def check_canonical(space: Space, arch: Architecture, task: Task) -> None:
    """The canonical form is an architecture of the same cost, and its own canonical form."""
    canonical = space.canonical(arch)
    assert space.check(dict(canonical)) == canonical, f"the canonical form {dict(canonical)} is no architecture"
    assert space.canonical(canonical) == canonical, f"the canonical form of {dict(canonical)} is another one"
    assert space.cost(canonical, task) == space.cost(arch, task), f"{dict(arch)} costs more or less than canonical"


def check_draws(space: Space, archs: list[Architecture], enough_to_list: int = 5_000) -> None:
    """A space that can be listed holds what it draws, each architecture once; others draw different ones."""
    count = space.count()
    if count > enough_to_list:
        assert len(set(archs)) == len(archs), f"of {count} architectures, {len(archs)} draws met one twice"
        return
    listed = list(space)
    assert len(listed) == len(set(listed)) == count, f"counts {count} architectures and lists {len(set(listed))}"
    assert set(archs) <= set(listed), "draws an architecture that it does not list"


def check_moves(space: Space, steps: int = 50, parts: int = 20) -> None:
    """Mutations, neighbours, combinations of choices and completions of a part are architectures."""
    generator = random.Random(1)
    arch = space.sample(generator)
    for _ in range(steps):
        changed = space.mutate(arch, generator)
        assert changed != arch, f"a mutation of {dict(arch)} changes nothing"
        assert space.check(dict(changed)) == changed, f"a mutation leaves the space: {dict(changed)}"
        arch = changed
    near = list(itertools.islice(space.neighbours(arch), 300))
    assert near and arch not in near, f"{dict(arch)} has no neighbours, or is its own"
    for each in near:
        assert space.check(dict(each)) == each, f"a neighbour is no architecture: {dict(each)}"
    distributions = space.distributions()
    for _ in range(parts):
        drawn = {name: generator.choice(each.choices) for name, each in distributions.items()}
        assert space.check(drawn, drop_untaken=True).items() <= drawn.items(), f"{drawn} is not legal as it stands"
        part = {name: choice for name, choice in drawn.items() if generator.random() < 0.5}
        whole = space.complete(part, drawn_by(generator))
        assert space.check(dict(whole)) == whole, f"{part} is completed to what is no architecture: {dict(whole)}"
        assert all(whole[name] == part[name] for name in whole.keys() & part.keys()), f"completing {part} changes it"


def check_cost(space: Space, arch: Architecture, task: Task) -> None:
    """The predicted parameters and MACs, and those by layers, are what is counted of the built network."""
    with without_storage() if task.gives_tensor else nullcontext():  # what is found in an image hangs on its values
        network = space.build(arch, task).eval()
    with torch.device("meta" if task.gives_tensor else "cpu"):
        macs = count_macs(network, task.arguments(images_for(space, arch, task, 1)))
        found = {"params": count_params(network)[0], "macs": macs}
    predicted = space.cost(arch, task)
    assert predicted == found, f"predicts {predicted} for {dict(arch)}; the network has {found}"
    rows = space.layers(arch, task)
    total = None if rows is None else sum(row.macs for row in rows)
    assert total in (None, found["macs"]), f"the layers of {dict(arch)} have {total} MACs, the network {found['macs']}"


def check_network(space: Space, arch: Architecture, task: Task) -> None:
    """A network is a plain module that gives what `task` asks for, and whose every parameter gets a gradient."""
    network = space.build(arch, task)
    parts = list(network.modules())
    assert not any(isinstance(part, Supernet) for part in parts), "a network holds a supernet"
    held = any(isinstance(value, Space) for part in parts for value in vars(part).values())
    assert not held, "a network holds its space"
    images = images_for(space, arch, task)
    if task.gives_tensor:
        outputs = first(network(images))
        assert outputs.shape[:2] == (4, task.num_outputs), (
            f"a network gives {tuple(outputs.shape)} for 4 images and {task.num_outputs} {task.counted}"
        )
        outputs.square().sum().backward()
    else:
        batch = Batch(task.arguments(images), [_one_object(image) for image in images])
        task.loss(task.forward(network.train(), batch), batch, network).backward()
        with torch.no_grad():
            found = task.config.outputs_of(task.forward(network.eval(), batch))
        assert found is not None, f"a network in evaluation does not give {task.form}"
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not idle, f"no gradient reaches {idle[0]} of {dict(arch)}"


def _one_object(image: Tensor) -> dict[str, Tensor]:
    """Return a target with one object of the first class in the middle of an image (C, H, W)."""
    height, width = image.shape[-2:]
    box = torch.tensor([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]])
    return {"boxes": box, "labels": torch.ones(1, dtype=torch.int64)}


def check_supernet(net: Supernet, arch: Architecture, images: Tensor, tolerance: float = 1e-6) -> None:
    """The supernet, in double precision and `arch` active, computes what the extracted network does in both modes."""
    net.activate(arch)
    alone = net.eval().extract()
    with torch.no_grad():
        check_close(first(net(images)), first(alone(images)), tolerance, arch)
        expected = first(alone.train()(images))
        check_close(first(net.train()(images)), expected, tolerance, arch)


def check_mixtures(net: Supernet, arch: Architecture, images: Tensor, tolerance: float = 1e-6) -> None:
    """A supernet that mixes, in double precision, hears all weights and decodes them.

    Where it mixes decisions, one-hot weights are `arch` and cost what it costs.
    """
    try:
        candidates = net.mixtures()
    except InputError:
        return  # it mixes nothing
    even = {name: torch.full((len(each),), 1 / len(each), requires_grad=True) for name, each in candidates.items()}
    net.eval().mix(even)
    first(net(images)).square().sum().backward()
    net.zero_grad(set_to_none=True)
    deaf = [name for name, weights in even.items() if weights.grad is None or not bool(weights.grad.any())]
    assert not deaf, f"a mixture does not hang on the weights of {deaf[0]}"
    strengths = {name: torch.rand(len(each)) for name, each in candidates.items()}
    decoded = net.decode(strengths)
    assert net.space.check(dict(decoded)) == decoded, f"the strengths are decoded to no architecture: {dict(decoded)}"
    if candidates.keys() <= arch.keys():
        alone = {name: torch.tensor([float(each == arch[name]) for each in some]) for name, some in candidates.items()}
        with torch.no_grad():
            net.mix(alone)
            mixed = first(net(images))
            net.activate(arch)
            check_close(mixed, first(net(images)), tolerance, arch)
        with suppress(InputError):  # it weighs no costs
            macs, wanted = net.expected_macs(alone).item(), net.space.cost(arch, net.task)["macs"]
            assert abs(macs - wanted) <= tolerance * wanted, f"expects {macs} MACs of {dict(arch)}, which has {wanted}"
    net.activate(arch)


def check_close(ours: Tensor, expected: Tensor, tolerance: float, arch: Architecture) -> None:
    """Two outputs are equal but for rounding."""
    assert bool(torch.isfinite(expected).all()), f"the extracted network of {dict(arch)} gives what is not finite"
    apart = float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-3))
    assert apart <= tolerance, f"the supernet is {apart:.1e} away from the extracted network of {dict(arch)}"


def first(output: Any) -> Tensor:
    """Return the output, or the first of several."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in double precision, where equal means equal and not a matter of the order of sums."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def enliven(module: nn.Module, seed: int = 0) -> None:
    """Give norms statistics and affine parameters that differ from their start, so that mix-ups show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                for tensor in (part.bias, part.running_mean):
                    if tensor is not None:
                        tensor.normal_(std=0.2, generator=generator)
                for tensor, low, high in ((part.weight, 0.5, 1.5), (part.running_var, 0.5, 2.0)):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
