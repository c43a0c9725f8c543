"""The load generator's histogram: exact where it says so, and within one hundredth everywhere else."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node._engine import Histogram

_VALUES = st.lists(
    st.one_of(st.integers(0, 300), st.integers(0, 1 << 40), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=200
)


def _filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@settings(max_examples=300, deadline=None)
@given(values=_VALUES, per_cent=st.floats(0, 100))
def test_percentiles_are_within_one_hundredth_of_the_exact_ones(values: list[int], per_cent: float) -> None:
    exact = sorted(values)[max(1, math.ceil(per_cent / 100 * len(values))) - 1]
    assert abs(_filled(values).percentile(per_cent) - exact) <= exact / 100


@settings(max_examples=200, deadline=None)
@given(values=_VALUES)
def test_every_value_is_counted_in_a_bucket_that_holds_it(values: list[int]) -> None:
    left = sorted(values)
    for low, width, count in _filled(values).buckets():
        held, left = left[:count], left[count:]
        assert len(held) == count
        assert all(low <= value < low + width for value in held)
        assert width == 1 or width <= low / 100
    assert not left


@settings(max_examples=200, deadline=None)
@given(values=_VALUES, cut=st.integers(0, 200))
def test_merged_halves_are_the_whole(values: list[int], cut: int) -> None:
    whole, merged = _filled(values), _filled(values[:cut])
    merged.merge(_filled(values[cut:]))
    assert merged.buckets() == whole.buckets()
    assert (merged.count, merged.min_ns, merged.max_ns) == (len(values), min(values), max(values))
    assert math.isclose(merged.sum_ns, sum(values), rel_tol=1e-9)
    assert math.isclose(merged.sum_squares, sum(value * value for value in values), rel_tol=1e-9)


def test_an_empty_histogram_has_no_figures() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.min_ns, histogram.max_ns, histogram.percentile(99)) == (0, 0, 0, 0)
    assert histogram.buckets() == []
