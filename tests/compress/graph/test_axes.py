"""The algebra of axes: reshapes refine, concatenations cut, residual sums join."""

import pytest

from compress.graph import axes
from compress.graph.dim_algebra import concatenate, flatten, narrow, reshape, split


def sizes(dim):
    return [[axis.size for axis in segment] for segment in axes.expand(dim)]


def test_splitting_a_fused_width_gives_its_factors():
    qkv = axes.fresh(3 * 4 * 8)
    parts, heads, width = split(qkv, (3, 4, 8))
    assert sizes(qkv) == [[3, 4, 8]]
    assert [axes.dim_size(d) for d in (parts, heads, width)] == [3, 4, 8]
    assert flatten([parts, heads, width]) == axes.expand(qkv)


def test_merging_and_splitting_again_keeps_the_axes():
    heads, width = axes.fresh(4), axes.fresh(8)
    merged = flatten([heads, width])
    again = split(merged, (4, 8))
    assert again == (heads, width)


def test_joined_widths_stay_joined_after_both_are_refined():
    a, b = axes.fresh(12), axes.fresh(12)
    axes.unify(a, b)
    split(a, (3, 4))
    assert axes.expand(a) == axes.expand(b)


def test_a_concatenation_cuts_the_width_it_meets():
    a, b, whole = axes.fresh(5), axes.fresh(7), axes.fresh(12)
    axes.unify(whole, concatenate([a, b]))
    assert axes.expand(whole) == axes.expand(a) + axes.expand(b)
    assert narrow(whole, 5, 7) == axes.expand(b)


def test_equal_parts_of_a_concatenation_become_one_width_when_stacked():
    q, k, v = axes.fresh(8), axes.fresh(8), axes.fresh(8)
    number, part = split(concatenate([q, k, v]), (3, 8))
    assert axes.is_frozen(number)
    assert axes.expand(part) == axes.expand(q) == axes.expand(k) == axes.expand(v)


def test_a_reshape_across_factors_freezes_with_a_reason():
    a = flatten([axes.fresh(3), axes.fresh(4)])
    split(a, (2, 6))
    assert axes.is_frozen(a)
    assert all(axis.frozen for axis in axes.axes_of(a))


def test_freezing_reaches_joined_axes():
    a, b = axes.fresh(6), axes.fresh(6)
    axes.unify(a, b)
    axes.freeze(a, "because")
    assert [axis.frozen for axis in axes.axes_of(b)] == ["because"]


def test_a_width_concatenated_in_shifted_orders_terminates():
    a, b = axes.fresh(9), axes.fresh(4)
    axes.unify(concatenate([a, b]), concatenate([b, a]))
    assert axes.dim_size(axes.expand(a)) == 9


def test_factors_of_size_one_do_not_loop():
    a = axes.fresh(7)
    axes.unify(concatenate([a, axes.fresh(1)]), concatenate([axes.fresh(1), a]))
    assert axes.dim_size(axes.expand(a)) == 7


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (24,), (2, 12), (1, 24, 1), (4, 6)])
def test_reshape_gives_the_asked_sizes(shape):
    dims = [axes.fresh(2), axes.fresh(3), axes.fresh(4)]
    assert tuple(axes.dim_size(dim) for dim in reshape(dims, shape)) == shape


def test_one_position_is_cut_off_a_width_but_picked_out_of_a_factor():
    width = axes.fresh(9)
    assert narrow(width, 0, 1) == axes.ONE and not axes.is_frozen(width)
    outer, pair = split(axes.fresh(16), (8, 2))
    narrow(pair, 0, 1)
    assert axes.is_frozen(pair) and not axes.is_frozen(outer)
