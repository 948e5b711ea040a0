"""Labels of the chart of all models."""

from compress.report.story_chart import _together


def test_models_at_one_place_share_a_label_and_others_keep_theirs() -> None:
    marks = [(300.0, 60.0, "prune"), (301.0, 55.0, "finetune"), (700.0, 40.0, "dense"), (302.0, 61.0, "sort")]
    assert _together(marks) == [(302.0, 60.0, "prune, finetune, sort"), (700.0, 40.0, "dense")]
