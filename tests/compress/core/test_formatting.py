import pytest

from compress.core import formatting as units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (87768224, "87.8 M"),
        (15.467e9, "15.5 G"),
        (855770, "856 K"),
        (640, "640"),
        (0, "0"),
        (1000, "1.00 K"),
        (999950, "1.00 M"),
    ],
)
def test_counts_get_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (15.467e9, 7.402e9, "15.5→7.4 G"),
        (87.77e6, 41.93e6, "88→42 M"),
        (1.2e9, 45e6, "1.200→0.045 G"),
        (640, 320, "640→320"),
        (88.1e6, 87.9e6, "88.1→87.9 M"),
        (88e6, 88e6, "88→88 M"),
    ],
)
def test_an_arrow_uses_one_unit_and_shows_a_difference_where_there_is_one(before: float, after: float, text: str):
    assert units.arrow_with_prefix(before, after) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100, 48, "\N{MINUS SIGN}52 %"), (100, 100, "±0 %"), (1000, 1003, "+0.3 %"), (2, 3, "+50 %")],
)
def test_percent_change_has_a_true_minus_sign(before: float, after: float, text: str) -> None:
    assert units.percent_change(before, after) == text


@pytest.mark.parametrize(("ratio", "text"), [(1.5512, "1.55×"), (0.5, "0.50×"), (0.06554, "0.0655×"), (12, "12.00×")])
def test_a_factor_keeps_its_digits_where_it_is_small(ratio: float, text: str) -> None:
    assert units.times(ratio) == text


def test_durations_read_naturally() -> None:
    found = [units.duration(s) for s in (1.44, 59.97, 128, 3599.8, 5403)]
    assert found == ["1.4 s", "1 min 00 s", "2 min 08 s", "1 h 00 min", "1 h 30 min"]


@pytest.mark.parametrize("value", [0.7411, 8.1e-7, 87768224, 58.12345678901234, 3.0])
def test_exact_text_reads_back_to_the_same_value(value: float) -> None:
    assert float(units.exact(value)) == value


@pytest.mark.parametrize(("value", "text"), [(0.0049, "0.00490 ms"), (5.94, "5.94 ms"), (1234.5, "1234 ms")])
def test_milliseconds_have_no_exponent(value: float, text: str) -> None:
    assert units.milliseconds(value) == text
