"""What a run relies on in a source of models."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.core.errors import InputError
from compress.core.tensors import called
from evaluators.tasks import DEFAULT, Task
from spaces.zoo import BuiltModel, ModelConfig, build_model


def check_source(config: ModelConfig, task: Task | None = None) -> None:
    """Build a model of the source a few times; a small one, please.

    Args:
        config: the section `model` of a recipe.
        task: what the model is built for; None: five classes of images of 3 channels and 64 pixels.

    Raises:
        AssertionError: names are listed twice, one that there is not is taken, the model is not for the task, the
            resolved config builds another one, or weights do not hang on the seed, and on it alone.
        InputError: the source refuses the config.
    """
    source, task = config.from_source, task or DEFAULT.bind(5, (3, 64, 64))
    names = list(source.names())
    assert len(set(names)) == len(names), f"source {config.source} lists a name twice"
    problems = config.problems()
    assert not problems, f"source {config.source} finds {problems}"
    source.look(config)
    _check_unknown(config, task)
    before = torch.get_rng_state()
    built = build_model(config, task, seed=1)
    _check_fit(built, task)
    assert torch.equal(before, torch.get_rng_state()), f"source {config.source} draws from the global generator"
    again, other = (_weights(build_model(config, task, seed=seed)) for seed in (1, 2))
    assert _same(_weights(built), again), f"source {config.source} gives other weights for the same seed"
    if not config.has_weights:
        assert not _same(again, other), f"source {config.source} gives the same weights for another seed"
    _check_rebuilt(built, task)


def _check_unknown(config: ModelConfig, task: Task) -> None:
    unknown = config.model_copy(update={"name": f"{config.name}_that_is_not_there"})
    try:
        build_model(unknown, task)
    except InputError as error:
        told = all(problem.startswith("model.") for problem in error.problems)
        assert told, f"source {config.source} refuses a name without the recipe's key: {error}"
    else:
        raise AssertionError(f"source {config.source} takes {unknown.name!r}")


def _check_fit(built: BuiltModel, task: Task) -> None:
    where = f"source {built.config.source}"
    assert built.task.config == task.config, f"{where} builds for task {built.task.name}; asked for is {task.name}"
    for what, asked, found in (
        ("outputs", task.num_outputs, built.task.num_outputs),
        ("input size", task.input_size, built.task.input_size),
        ("input size in pretrained_cfg", built.input_size, tuple(built.pretrained_cfg["input_size"])),
    ):
        assert asked == found, f"{where}: {what} {found}; asked for are {asked}"
    assert not built.module.training, f"{where} leaves the model in training mode"
    with torch.no_grad():
        outputs = called(built.module, task.arguments(torch.zeros(1, *built.input_size)))
    given = task.config.outputs_of(outputs) or task.config.width_of(built.module)
    assert given == task.num_outputs, f"{where}: the model has a head of {given}; asked for are {task.num_outputs}"


def _check_rebuilt(built: BuiltModel, task: Task) -> None:
    """Raise AssertionError where the resolved config is not what the model is built again from, in any process."""
    where, config = f"source {built.config.source}", built.config
    assert config.checkpoint is None and not config.pretrained, f"{where}: the resolved config asks for weights"
    written = config.model_dump(mode="json")
    again = ModelConfig.model_validate(written)
    assert again == config, f"{where}: the resolved config reads back as another: {written}"
    sizes = (task.num_outputs if config.from_source.headless else None, ())
    rebuilt = build_model(config, task.config.of_model(*sizes))
    shapes = [{name: value.shape for name, value in _weights(each).items()} for each in (built, rebuilt)]
    assert shapes[0] == shapes[1], f"{where}: the resolved config builds another architecture: {written}"
    assert rebuilt.config == config, f"{where}: what the resolved config builds has another one: {rebuilt.config}"


def _weights(built: BuiltModel) -> dict[str, Tensor]:
    return built.module.state_dict()


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
