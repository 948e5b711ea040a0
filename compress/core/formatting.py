"""Numbers as people read them: three digits, a unit, a true minus sign."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "K"))


def prefix_of(value: float) -> tuple[float, str]:
    """Return divisor and prefix (G, M, K or none) that fit `value`, rounded to three digits: 999,950 is 1.00 M."""
    return next(((size, prefix) for size, prefix in _PREFIXES if abs(value) >= 0.9995 * size), (1.0, ""))


def three_digits(value: float) -> str:
    """Return `value` with three significant digits and no exponent: 87.8, 4.36, 0.0127, 1234."""
    if value == 0:
        return "0"
    rounded = abs(float(f"{value:.2e}"))  # 0.99995 is 1.00
    decimals = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{value:.{min(decimals, 6)}f}".replace("-", MINUS)


def count(value: float) -> str:
    """Return a count with its prefix: 87.8 M; below a thousand as it is."""
    size, prefix = prefix_of(value)
    return f"{three_digits(value / size)} {prefix}" if prefix else f"{value:g}"


def file_size(value: float) -> str:
    """Return bytes as KB, MB or GB (powers of 1000)."""
    size, prefix = prefix_of(value)
    return f"{three_digits(value / size)} {prefix}B" if prefix else f"{value:g} B"


def milliseconds(value: float) -> str:
    """Return a time in ms with three digits."""
    return f"{three_digits(value)} ms"


def times(ratio: float) -> str:
    """Return a factor as `1.55×`; below a tenth with three digits."""
    return f"{three_digits(ratio) if 0 < ratio < 0.1 else f'{ratio:.2f}'}\N{MULTIPLICATION SIGN}"


def duration(seconds: float) -> str:
    """Return seconds as `48.2 s`, `4 min 12 s` or `2 h 05 min`."""
    if seconds < 59.95:  # else it would read 60.0 s
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float, decimals: int = 0) -> str:
    """Return a number with its sign: +3, \N{MINUS SIGN}0.2, ±0."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return f"±{text}"
    return f"{'+' if value > 0 else MINUS}{text}"


def percent_change(before: float, after: float) -> str:
    """Return the change from `before` to `after` as `\N{MINUS SIGN}52 %`; one decimal below 10 %."""
    change = 100 * (after - before) / before
    return f"{signed(change, 1 if 0 < abs(change) < 9.95 else 0)} %"


def arrow(before: float, after: float) -> str:
    """Return `15.5→7.4`: two digits or more of the smaller, more where both would read the same."""
    smaller = min(abs(before), abs(after)) or max(abs(before), abs(after))
    decimals = next((n for n, limit in enumerate((20, 2, 0.2)) if smaller >= limit), 3)
    if before != after:
        while decimals < 3 and f"{before:.{decimals}f}" == f"{after:.{decimals}f}":
            decimals += 1
    return f"{before:.{decimals}f}→{after:.{decimals}f}"


def arrow_with_prefix(before: float, after: float) -> str:
    """Return two counts under the prefix of the larger: `15.5→7.4 G`, `88→42 M`, `640→320`."""
    size, prefix = prefix_of(max(before, after))
    return f"{arrow(before / size, after / size)} {prefix}" if prefix else f"{before:g}→{after:g}"


def exact(value: float) -> str:
    """Return a number so that reading it gives the same value."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
