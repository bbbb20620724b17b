"""Tables give back what is in them and interpolate between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.calibrate.transfer.kernels import DecodeAttentionTable, GemmTable
from qsim.errors import CalibrationError
from tests.calibrate.transfer.tables import gemm, gemm_ms, tables

WIDTH, FLOPS = 4.8e12, 989e12


@given(
    m=st.integers(1, 20000),
    k=st.integers(1024, 65536),
    n=st.integers(1024, 65536),
)
def test_a_table_of_reads_and_operations_is_interpolated_exactly(m: int, k: int, n: int) -> None:
    # time per weight does not depend on k and n, and the latency is linear in m
    got = gemm(2.0, WIDTH, FLOPS).ms(m, k, n)
    want = gemm_ms(m, k, n, 2.0, WIDTH, FLOPS)
    if m <= 8192:
        assert got == pytest.approx(want, rel=1e-9)
    else:  # beyond the table in proportion
        assert got == pytest.approx(gemm_ms(8192, k, n, 2.0, WIDTH, FLOPS) * m / 8192, rel=1e-9)


def test_beyond_the_largest_matrix_it_grows_with_the_weights() -> None:
    table = gemm(2.0, WIDTH, FLOPS)
    assert table.ms(8, 4096, 2 * 65536) == pytest.approx(2 * table.ms(8, 4096, 65536))


def test_a_hole_is_filled_from_its_neighbours_and_a_void_is_an_error() -> None:
    table = GemmTable([1, 1, 1, 8], [64, 64, 128, 128], [64, 128, 64, 128], [1.0, 2.0, 2.0, 8.0])
    assert table.ms(1, 64, 64) == pytest.approx(1.0)
    assert table.ms(1, 100, 100) == pytest.approx(100 * 100 / 64**2)
    with pytest.raises(CalibrationError, match="nothing near m=8, k=64, n=64"):
        table.ms(8, 64, 64)


def test_repeated_measurements_count_by_the_least() -> None:
    assert GemmTable([1, 1], [64, 64], [64, 64], [3.0, 2.0]).ms(1, 64, 64) == pytest.approx(2.0)


def test_attention_is_linear_between_batches_and_contexts() -> None:
    table = tables().decode_attention["bfloat16"]
    a = [table.ms(32, 8, 128, r, 4000) for r in (8, 16, 24, 64)]
    assert a[1] - a[0] == pytest.approx(a[2] - a[1])
    assert a[0] < a[1] < a[3]
    assert table.ms(32, 8, 128, 8, 300_000) > table.ms(32, 8, 128, 8, 131_071)
    assert table.ms(32, 8, 128, 1, 0) == table.ms(32, 8, 128, 1, 1)


def test_other_numbers_of_heads_are_interpolated_and_groups_scaled() -> None:
    table = tables().decode_attention["bfloat16"]
    low, high = table.ms(40, 8, 128, 8, 1023), table.ms(64, 8, 128, 8, 1023)
    assert low <= table.ms(52, 8, 128, 8, 1023) <= high
    # 16 groups: twice the table of 8
    assert table.ms(64, 16, 128, 8, 1023) == pytest.approx(2 * table.ms(32, 8, 128, 8, 1023))
    with pytest.raises(CalibrationError, match="head_dim is 80; the attention table has 128"):
        table.ms(32, 8, 80, 1, 1)


def test_duplicate_rows_of_attention_are_merged() -> None:
    columns = {
        "num_heads": [8, 8, 8],
        "num_key_value_heads": [8, 8, 8],
        "head_dim": [128, 128, 128],
        "batch_size": [1, 1, 1],
        "step": [1, 1, 101],
    }
    table = DecodeAttentionTable(
        {k: np.array(v) for k, v in columns.items()}, np.array([2.0, 1.0, 3.0])
    )
    assert table.ms(8, 8, 128, 1, 51) == pytest.approx(2.0)


def test_all_reduce_by_size_and_way() -> None:
    table = tables().all_reduce
    assert table.ms(1, 1e6, True) == 0.0
    assert table.ms(2, 1e6, False) - table.ms(2, 1e6, True) == pytest.approx(0.02)
    assert table.ms(4, 2e6, True) > table.ms(4, 1e6, True)
    with pytest.raises(CalibrationError, match="over 3 GPUs; the table has 2, 4"):
        table.ms(3, 1e6, True)


def test_the_slope_in_pairs_is_that_of_the_table() -> None:
    slope = tables().prefill_attention["bfloat16"].ms_per_pair(32, 8, 128)
    assert slope == pytest.approx(1e3 * 32 * 512 / 989e12)
