from __future__ import annotations

import pytest
from optuna import pruners
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from pydantic import ValidationError

from compress.core.errors import InputError
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from search.config import PrunerConfig, SearchConfig
from search.executors.local import LocalExecutor
from search.executors.ray import RayExecutor
from search.job import SearchJob, make_pruner
from search.space import make_space
from search.strategies.regularized_evolution import RegularizedEvolutionSampler
from search.supernets.method import seeded
from search.supernets.single_path import SinglePath
from search.supernets.trained import TrainedSupernet, fingerprint
from spaces.registry import open_preset
from spaces.zoo import ModelConfig


def test_a_job_opens_space_evaluator_strategy_and_study(job):
    runner = job().open()
    assert runner.judge.space.count() == 256
    assert isinstance(runner.study.sampler, RegularizedEvolutionSampler)
    assert runner.trials == 30


def test_a_strategy_proposes_only_what_keeps_the_constraints_that_cost_nothing(job):
    limited = job(objective={"constraints": {"macs": {"max": 50}}}, strategy={"name": "local_search"})
    runner = limited.open()
    for _ in range(20):
        runner.run(runner.ask())
    assert all(trial.state.name == "COMPLETE" for trial in runner.study.trials)


def test_an_unknown_metric_is_found_before_anything_is_evaluated(job):
    with pytest.raises(InputError, match="nothing measures 'accuracy'"):
        job(objective={"maximize": ["accuracy"]}).judge()


def test_an_unknown_spaces_the_nearest(job):
    with pytest.raises(ValidationError, match="did you mean 'mobilenetv3'"):
        job(space={"name": "mobilenetv4"})
    with pytest.raises(ValidationError, match="did you mean 'tiny'"):
        job(space={"name": "mobilenetv3", "preset": "tinny"})


def test_an_unknown_strategy_is_refused_with_what_is_allowed(job):
    with pytest.raises(ValidationError, match="regularized_evolution"):
        job(strategy={"name": "regularised_evolution"})


def test_an_argument_that_a_sampler_does_not_take_names_the_nearest(job):
    with pytest.raises(ValidationError, match="did you mean 'n_startup_trials'"):
        job(strategy={"name": "tpe", "options": {"n_startup_trial": 5}})
    with pytest.raises(ValidationError, match="got 'five'; allowed a whole number"):
        job(strategy={"name": "tpe", "options": {"n_startup_trials": "five"}})


def test_a_strategy_for_one_value_takes_no_two(job):
    two = {"maximize": ["top1"], "minimize": ["macs"]}
    with pytest.raises(ValidationError, match="local_search searches for one value; got 2 in objective"):
        job(strategy={"name": "local_search"}, objective=two)
    job(strategy={"name": "nsga2"}, objective=two).open()


def test_constraints_that_no_architecture_keeps_are_found_before_the_study_is_opened(job):
    with pytest.raises(InputError, match="of the nearest that was found, macs 120 is below 121"):
        job(objective={"constraints": {"macs": {"min": 121}}}).open()
    assert not (job().directory / "study.journal").exists()
    assert job(objective={"constraints": {"macs": {"min": 120}}}).open()  # one of 256


def test_a_search_ends_with_its_grid(job):
    part = {"name": "grid", "options": {"search_space": {"a": [0], "b": [1, 2]}}}
    search = job(strategy=part, trials=100)
    search.run(search.open(), None)
    trials = search.open().study.get_trials(deepcopy=False)
    assert len({str(trial.params) for trial in trials}) == len(trials) == 32


def test_a_study_of_another_space_is_refused_and_a_trial_that_was_cut_short_is_not(job):
    study = job().open().study
    study.tell(study.ask({"a": CategoricalDistribution([0, 1, 2, 3])}), state=TrialState.FAIL)
    assert job().open()
    other = {"b": CategoricalDistribution([0, 9])}
    study.add_trial(create_trial(params={"b": 9}, distributions=other, value=1.0))
    with pytest.raises(InputError, match=r"table is not what it was .* \(trial 1: b is another decision now\)"):
        job().open()


def test_a_search_does_not_go_on_with_a_table_of_other_values(job, table, tmp_path):
    """Trials of both would be held against each other, and the winner told with a value that no file gives."""
    own = tmp_path / "own.csv"
    own.write_text(table.read_text())
    there = job(space={"name": "table", "options": {"path": str(own), "decisions": ["a", "b", "c", "d"]}})
    runner = there.open()
    for _ in range(3):
        runner.run(runner.ask())
    assert there.open().planned() == 3
    lines = own.read_text().splitlines()
    tried = {tuple(trial.params[name] for name in "abcd") for trial in runner.study.trials}
    others = [line for line in lines[1:] if tuple(map(int, line.split(",")[:4])) not in tried]
    own.write_text("\n".join(lines).replace(others[0], others[0].replace(others[0].split(",")[4], "1.5")) + "\n")
    assert there.open().planned() == 3  # what no trial has read may be put right
    own.write_text("\n".join([lines[0], *(line.replace(line.split(",")[4], "7.25") for line in lines[1:])]) + "\n")
    with pytest.raises(InputError, match=r"top1 of trial 0 was \d.*; the table that it is read off gives 7.25 now"):
        there.open()


def test_a_search_does_not_go_on_with_a_supernet_that_was_trained_anew(tmp_path):
    """Scores of two trainings would be held against each other."""
    data = DigitsConfig(name="digits", image_size=16, limit_train=100, limit_test=20, batch_size=40)
    space = open_preset("mobilenetv3", "tiny")[0]
    space.default_task = space.task(10, 3, 16)

    def train(seed):
        samples, labels = fingerprint(data.load(DEFAULT, seed=0))
        with seeded(seed):
            supernet = space.supernet(space.default_task)
        method = SinglePath(name="single_path")
        trained = TrainedSupernet(space, method, space.default_task, 0, 0.2, samples, labels, supernet)
        trained.save(tmp_path / "weights" / "supernet")

    section = {
        "space": {"name": "mobilenetv3", "preset": "tiny"},
        "strategy": {"name": "random"},
        "objective": {"maximize": ["top1"]},
        "evaluator": {"kind": "supernet", "weights": str(tmp_path / "weights"), "recalibrate": 1},
        "trials": 5,
    }
    search = SearchJob(SearchConfig.model_validate(section), data, None, "toy", 0, "cpu", tmp_path)
    train(1)
    search.open()
    train(2)  # nothing has been judged yet
    runner = search.open()
    runner.run(runner.ask())
    assert search.open().planned() == 1
    train(3)
    with pytest.raises(InputError, match=r"the weights that it judges by are others .* study toy were judged"):
        search.open()
    train(2)
    assert search.open().planned() == 1


def test_a_preset_opens_its_space(job):
    space = make_space(job(space={"name": "mobilenetv3", "preset": "tiny"}).config.space)
    assert space.name == "mobilenetv3"


def test_the_space_channels_narrows_the_recipes_model(job):
    given = job(space={"name": "channels", "options": {}}).config.space
    model = ModelConfig.model_validate({"source": "timm", "name": "resnet10t", "kwargs": {"num_classes": 10}})
    assert make_space(given, model).config.model.name == "resnet10t"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("asha", pruners.SuccessiveHalvingPruner),
        ("hyperband", pruners.HyperbandPruner),
        ("median", pruners.MedianPruner),
    ],
)
def test_pruners_are_optunas(name, kind):
    assert isinstance(make_pruner(PrunerConfig(name=name)), kind)


def test_pruner_options_are_checked():
    with pytest.raises(ValidationError, match="did you mean 'reduction_factor'"):
        PrunerConfig(name="asha", options={"reduction_facter": 2})
    with pytest.raises(InputError, match=r"search\.pruner\.options: ThresholdPruner refuses"):
        make_pruner(PrunerConfig(name="threshold"))


TRAIN = {"kind": "train"}


@pytest.mark.parametrize(
    ("evaluator", "objective", "right"),
    [
        (TRAIN, {"maximize": ["top1"], "reward": {"metric": "macs", "target": 1e6}}, True),
        (TRAIN, {"maximize": [], "minimize": ["loss"]}, True),
        (TRAIN, {"maximize": [], "minimize": ["macs"], "constraints": {"top1": {"min": 50.0}}}, False),
        (TRAIN, {"weights": {"loss": -1.0}}, False),
        (TRAIN, {"weights": {"top1": 1.0, "macs": -1e-6}}, True),
        ({"kind": "train", "train": {"evaluate_every": 0}}, {"maximize": ["top1"]}, False),
        ({"kind": "proxy"}, {"maximize": ["proxy"]}, False),
    ],
)
def test_a_pruner_needs_training_and_a_value_that_it_can_watch(job, evaluator, objective, right):
    def make():
        return job(pruner={"name": "asha"}, evaluator=evaluator, objective=objective)

    if right:
        assert make().config.pruner is not None
    else:
        with pytest.raises((ValidationError, InputError), match="pruner"):
            make()


def test_a_pruner_needs_one_objective(job):
    with pytest.raises(ValidationError, match="pruner works with one objective"):
        job(pruner={"name": "asha"}, objective={"maximize": ["top1"], "minimize": ["macs"]})


def test_executors_are_told_apart_by_kind(job):
    assert isinstance(job().config.executor, LocalExecutor)
    assert isinstance(job(executor={"kind": "ray", "gpus": 0.25}).config.executor, RayExecutor)
    with pytest.raises(ValidationError, match="'local', 'ray'"):
        job(executor={"kind": "slurm"})


def test_ray_client_addresses_are_refused_with_what_to_do_instead(job):
    with pytest.raises(ValidationError, match="address: auto"):
        job(executor={"kind": "ray", "address": "ray://head:10001"})


def test_the_section_survives_its_yaml_form(job):
    config = job(executor={"kind": "ray", "batch": 4}).config
    assert SearchConfig.model_validate(config.model_dump(mode="json")) == config
