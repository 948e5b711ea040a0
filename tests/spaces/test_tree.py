from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence

import pytest

from spaces.architecture import Choice, Condition, Decision, where
from spaces.tree import Tree


def brute_force(decisions: Sequence[Decision]) -> list[dict[str, Choice]]:
    """Every legal assignment, by going through all combinations of choices; lexicographic."""
    found: dict[tuple[tuple[str, Choice], ...], None] = {}
    for combination in itertools.product(*(decision.choices for decision in decisions)):
        taken: dict[str, Choice] = {}
        for decision, choice in zip(decisions, combination, strict=True):
            when = decision.when
            if when is None or when.holds({name: taken[name] for name in when.reads if name in taken}):
                taken[decision.name] = choice
        found[tuple(taken.items())] = None
    return [dict(items) for items in found]


def stages() -> list[Decision]:
    """Two stages of one to three layers with kernels of their own, one kernel that reads two earlier decisions."""
    decisions = [Decision("attention", (False, True))]
    for stage in "ab":
        depth = f"{stage}.depth"
        decisions.append(Decision(depth, (1, 2, 3)))
        for layer in range(3):
            when = where(depth, *range(layer + 1, 4)) if layer else None
            decisions.append(Decision(f"{stage}.kernel{layer}", (3, 5), when))
    deep = Condition("where both stages are 3 deep", ("a.depth", "b.depth"), lambda taken: set(taken.values()) == {3})
    return [*decisions, Decision("heads", (2, 4, 8), where("attention", True)), Decision("extra", ("no", "yes"), deep)]


def nested() -> list[Decision]:
    """A condition on a decision that is itself not always taken."""
    return [
        Decision("outer", ("on", "off")),
        Decision("middle", (1, 2, 3), where("outer", "on")),
        Decision("inner", ("x", "y"), where("middle", 2, 3)),
        Decision("absent", (0, 1), Condition("where middle is not taken", ("middle",), lambda taken: not taken)),
        Decision("never", (1, 2), where("outer", "neither")),
    ]


def random_decisions(seed: int) -> list[Decision]:
    generator = random.Random(seed)
    decisions: list[Decision] = []
    for index in range(7):
        when = None
        if decisions and generator.random() < 0.7:
            read = generator.sample(decisions, min(len(decisions), generator.randint(1, 2)))
            wanted = {each.name: generator.choice(each.choices) for each in read}
            if generator.random() < 0.5:
                holds = lambda taken, wanted=wanted: taken == wanted  # noqa: E731
            else:
                holds = lambda taken, wanted=wanted: any(  # noqa: E731
                    taken.get(name) == choice for name, choice in wanted.items()
                )
            when = Condition("sometimes", tuple(wanted), holds)
        decisions.append(Decision(f"d{index}", tuple(range(generator.randint(1, 3))), when))
    return decisions


SPACES = {"stages": stages(), "nested": nested()} | {f"random {seed}": random_decisions(seed) for seed in range(20)}


@pytest.mark.parametrize("name", SPACES)
def test_lists_exactly_the_legal_assignments_in_order_of_their_choices(name: str) -> None:
    tree, expected = Tree(SPACES[name]), brute_force(SPACES[name])
    assert tree.count() == len(expected)
    assert list(tree) == expected
    assert [list(each) for each in tree] == [list(each) for each in expected]  # decisions stay in order


@pytest.mark.parametrize("name", SPACES)
def test_rank_is_the_inverse_of_unrank(name: str) -> None:
    tree = Tree(SPACES[name])
    assert [tree.rank(tree.unrank(rank)) for rank in range(tree.count())] == list(range(tree.count()))


def test_counts_spaces_far_too_large_to_list_at_once() -> None:
    decisions = []
    for stage in range(5):
        decisions.append(Decision(f"s{stage}.depth", (2, 3, 4)))
        for layer in range(4):
            when = where(f"s{stage}.depth", *range(layer + 1, 5)) if layer >= 2 else None
            decisions.append(Decision(f"s{stage}.l{layer}.kernel", (3, 5, 7), when))
            decisions.append(Decision(f"s{stage}.l{layer}.expand", (3, 4, 6), when))
    started = time.perf_counter()
    tree = Tree(decisions)
    assert tree.count() == (9**2 + 9**3 + 9**4) ** 5 == 21_758_655_492_572_485_851
    assert time.perf_counter() - started < 1
    generator = random.Random(0)
    for _ in range(50):
        rank = generator.randrange(tree.count())
        assert tree.rank(tree.unrank(rank)) == rank


def test_a_space_without_decisions_has_one_architecture() -> None:
    assert Tree([]).count() == 1 and list(Tree([])) == [{}] and Tree([]).rank({}) == 0


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([Decision("a", (1,)), Decision("a", (2,))], "same name"),
        ([Decision("a", ())], "no choices"),
        ([Decision("a", (1, 2, 1))], "twice"),
        ([Decision("a", (1, 2, 1.0))], "twice"),
        ([Decision("a", (1, 2), where("b", 1)), Decision("b", (1,))], "not decided before"),
        ([Decision("a", (1, 2), where("a", 1))], "not decided before"),
        ([Decision("a", (1, 2), where("c", 1))], "not decided before"),
    ],
)
def test_refuses_decisions_that_make_no_tree(decisions: list[Decision], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tree(decisions)
