from compress.prune.sensitivity import SensitivityRow
from compress.report.details import Sensitivity
from compress.report.sensitivity import sensitivity_table
from evaluators.tasks import DEFAULT

MAIN = DEFAULT.metrics[0]


def _scanned(group: str, **drops: float) -> list[Sensitivity]:
    rows = [SensitivityRow(group, "channels", float(ratio[1:]) / 100, 90.0, drop) for ratio, drop in drops.items()]
    return [Sensitivity.model_validate(vars(row)) for row in rows]


def test_groups_come_in_order_of_what_they_lose_and_odd_shares_are_told() -> None:
    scanned = [*_scanned("a", _75=1.0, _50=0.5, _25=-0.25), *_scanned("b", _25=2.0, _50=4.0, _75=30.0)]
    table = sensitivity_table([*scanned, *_scanned("c", _33=0.0, _67=2.5)], MAIN)
    assert table is not None
    assert table.columns == ["25 % removed", "50 % removed", "75 % removed"]
    assert table.rows == [
        ("b", "channels", ["−2.00", "−4.00", "−30.00"]),
        ("c", "channels", ["±0.00 (at 33 %)", "−2.50 (at 67 %)", "–"]),
        ("a", "channels", ["+0.25", "−0.50", "−1.00"]),
    ]


def test_nothing_scanned_is_no_table() -> None:
    assert sensitivity_table([], MAIN) is None
