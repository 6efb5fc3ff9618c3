"""The kernels against the reference in float64 on shapes, gates and packings that nobody chose."""

import tempfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from longstream.ops import _native
from tests.cases import GATES
from tests.every_op import check, gated_scan_sample, gla_sample, long_conv_sample, short_conv_sample, two_sided_sample

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=f"native: {_native.MISSING}")

set_hypothesis_home_dir(tempfile.gettempdir())  # it notes what it found in the sources, which is not for this folder
# The same examples in every run; none is kept on disk, and a slow machine is no failure.
fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

dtypes = st.sampled_from([torch.float32, torch.float64])
gates = st.sampled_from(GATES)
sizes = st.one_of(st.integers(1, 5), st.integers(6, 40))
lengths = st.one_of(st.integers(0, 5), st.integers(6, 140))


@st.composite
def layouts(draw):
    """Rows of one length, (B, T, None); or one packed row of several lengths, (1, T, cu_seqlens)."""
    if draw(st.booleans()):
        return draw(st.integers(0, 3)), draw(lengths), None
    bounds = [0]
    for length in draw(st.lists(lengths, min_size=1, max_size=5)):
        bounds.append(bounds[-1] + length)
    return 1, bounds[-1], bounds


@fixed
@given(layouts(), st.integers(1, 3), sizes, sizes, gates, dtypes, st.booleans())
def test_gla(layout, H, K, V, gates, dtype, state):
    B, T, cu_seqlens = layout
    check(gla_sample(B, T, H, K, V, cu_seqlens=cu_seqlens, gates=gates, dtype=dtype, state=state))


@fixed
@given(layouts(), sizes, gates, dtypes, st.booleans(), st.booleans(), st.booleans())
def test_gated_scan(layout, D, gates, dtype, state, is_complex, reverse):
    B, T, cu_seqlens = layout
    options = {"cu_seqlens": cu_seqlens, "gates": gates, "dtype": dtype, "state": state, "reverse": reverse}
    check(gated_scan_sample(B, T, D, unit="complex" if is_complex else "real", **options))


@fixed
@given(layouts(), sizes, st.integers(1, 9), dtypes, st.booleans(), st.booleans(), st.sampled_from([None, "silu"]))
def test_short_conv(layout, D, W, dtype, state, bias, activation):
    B, T, cu_seqlens = layout
    options = {"cu_seqlens": cu_seqlens, "dtype": dtype, "state": state, "bias": bias}
    check(short_conv_sample(B, T, D, W, activation=activation, **options))


@fixed
@given(layouts(), sizes, st.integers(1, 300), st.one_of(st.none(), st.integers(0, 400)), dtypes, st.booleans())
def test_long_conv(layout, D, L, start, dtype, skip):
    B, T, cu_seqlens = layout
    rows = B if cu_seqlens is None else len(cu_seqlens) - 1
    starts = None if start is None or rows == 0 else [start] * rows
    check(long_conv_sample(B, T, D, L, lengths=starts, cu_seqlens=cu_seqlens, dtype=dtype, skip=skip))


@fixed
@given(layouts(), sizes, st.integers(1, 200), dtypes, st.booleans())
def test_long_conv_two_sided(layout, D, L, dtype, skip):
    B, T, cu_seqlens = layout
    check(two_sided_sample(B, T, D, L, cu_seqlens=cu_seqlens, dtype=dtype, skip=skip))
