from __future__ import annotations

from spaces.architecture import Condition, Decision, where
from spaces.decision_lines import about, group_decisions, show_choices


def lines(decisions: list[Decision], by_condition: bool = True) -> list[tuple[str, str]]:
    return [(group.full_name, group.condition) for group in group_decisions(decisions, by_condition)]


def elastic() -> list[Decision]:
    found = []
    for stage in (1, 2, 3):
        found.append(Decision(f"stage{stage}.depth", (2, 3, 4)))
        for layer in (1, 2, 3, 4):
            when = where(f"stage{stage}.depth", *range(layer, 5)) if layer > 2 else None
            found.append(Decision(f"stage{stage}.layer{layer}.kernel", (3, 5, 7), when))
    return found


def test_decisions_that_differ_in_numbers_only_are_one_line() -> None:
    assert lines(elastic(), by_condition=False) == [("stage1–3.depth", ""), ("stage1–3.layer1–4.kernel", "")]
    first, second = group_decisions(elastic(), by_condition=False)
    assert (second.section, second.name, len(first.members), len(second.members)) == (
        "stage1–3",
        "layer1–4.kernel",
        3,
        12,
    )


def test_conditions_keep_decisions_apart_and_name_the_same_range() -> None:
    assert lines(elastic()) == [
        ("stage1–3.depth", ""),
        ("stage1–3.layer1–2.kernel", ""),
        ("stage1–3.layer3.kernel", "where stage1–3.depth is 3 or 4"),
        ("stage1–3.layer4.kernel", "where stage1–3.depth is 4"),
    ]


def test_other_choices_or_gaps_in_the_numbers_are_told() -> None:
    decisions = [Decision("a1.b1", (1,)), Decision("a2.b2", (1,)), Decision("a3.b1", (1, 2)), Decision("c", (1,))]
    assert lines(decisions) == [("a1.b1 … a2.b2", ""), ("a3.b1", ""), ("c", "")]
    (group,) = group_decisions([Decision(name, (1,)) for name in ("net.1.2.width", "net.2.1.width")])
    assert (group.section, group.name) == ("net", "1.2.width … 2.1.width")
    assert lines([Decision(f"layer{number}", (1,)) for number in (1, 3, 7)]) == [("layer1,3,7", "")]


def test_a_condition_on_all_earlier_decisions_need_not_name_them() -> None:
    decisions = [Decision(f"layer{number}", (0, 1)) for number in (1, 2)]
    reads = ("layer1", "layer2")
    decisions += [
        Decision(f"more{number}", (0, 1), Condition("where any is 1", reads[:number], lambda taken: True))
        for number in (1, 2)
    ]
    assert lines(decisions) == [("layer1–2", ""), ("more1–2", "where any is 1")]


def test_conditions_may_name_layers_in_words() -> None:
    decisions = [
        Decision(f"layer{n}.step", ("stay", "down"), Condition(f"where layer {n - 1} is on scale 2 or 1", (), bool))
        for n in range(1, 5)
    ]
    assert lines(decisions) == [("layer1–4.step", "where layer 0–3 is on scale 2 or 1")]


def test_long_lists_of_choices_lose_their_middle() -> None:
    assert show_choices((1, 2, 3)) == "1, 2, 3"
    shown = show_choices(range(8, 513, 8))
    assert len(shown) <= 60 and shown.startswith("8, 16, ") and shown.endswith("… 512 (64 choices)")


def test_numbers_beyond_any_float_are_told_in_short() -> None:
    assert about(21758655492572485851) == "2.18e19"
    assert about(7**1000) == "1.25e845"
