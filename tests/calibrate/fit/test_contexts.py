"""Contexts of single requests, and what they cost the attention kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qsim.calibrate.fit.contexts import (
    PART,
    busiest_share,
    context_of_traffic,
    decode_contexts,
    typical_share,
)
from qsim.calibrate.recordings.data import Recording


def test_equal_requests_fill_the_processors() -> None:
    # 8192 tokens and the next one are 65 blocks: 4160 of 8 requests and heads, 31.5 a processor. At
    # most ceil(34.7) to a split, so two a request, of 33 and 32
    assert busiest_share([8192] * 8, 8) == pytest.approx(33 * 132 / 4160)
    # six requests of 64 blocks: at most ceil(25.6), three splits of 22, 22 and 20 a request. These
    # are 144, and twelve processors get another one of 22 when the first ones, of 20, are through
    assert busiest_share([8191] * 6, 8) == pytest.approx(42 * 132 / (6 * 64 * 8))


def test_requests_of_different_lengths_do_not() -> None:
    # 480 blocks, at most ceil(32.0): splits of 32 blocks but one of 16, 15 of each head, for 120
    # of 132 processors
    assert busiest_share([32767, 16383, 8191, 4095], 8) == pytest.approx(32 * 132 / (480 * 8))
    # a little apart from such lengths, and some processors get two
    assert busiest_share([27000, 20000, 15000, 7000, 5000], 8) > 1.5
    # more requests than processors need no splits, and differences even out
    assert busiest_share([1000] * 512, 8) == pytest.approx(1.03, abs=0.02)


def test_a_split_has_a_least_size_in_a_graph() -> None:
    # one request and one head: 32 splits at most, on 132 processors
    assert busiest_share([128 * 3200 - 1], 1) == pytest.approx(132 / 32)


@pytest.mark.parametrize(("rows", "context"), [(1, 4000), (4, 1000), (16, 8000), (128, 500)])
def test_the_table_is_what_it_says(rows: int, context: int) -> None:
    rng = np.random.default_rng([rows, context])
    shares = []
    for _ in range(200):
        contexts = np.exp(rng.normal(0.0, 1.0, rows))
        contexts *= context / contexts.mean()
        shares.append(busiest_share(np.maximum(contexts, 1).astype(int), 8))
    assert typical_share(rows, context) == pytest.approx(np.mean(shares), abs=0.006)


def test_between_and_beyond_the_table() -> None:
    inner = typical_share([20, 24], [5000, 5000])
    assert 1.4 < inner[0] < 1.6
    assert typical_share(2000, 100) == typical_share(512, 250)
    assert typical_share(0.5, 4000) == typical_share(1, 4000)


def test_contexts_of_single_requests(recorded: Recording) -> None:
    known = decode_contexts(recorded)
    s = recorded.steps
    decodes = (s.num_chunks == 0) & (s.decodes > 0)
    found = [k for k, c in enumerate(known) if c is not None]
    assert len(found) > 0.9 * decodes.sum()
    for k in found:
        contexts = known[k]
        assert contexts is not None
        assert len(contexts) == s.decodes[k]
        assert abs(contexts.sum() - s.decode_context_tokens[k]) <= len(contexts)
        assert s.num_chunks[k] == 0


def test_batches_of_one_length_count_less(recorded: Recording) -> None:
    s = recorded.steps
    counted = context_of_traffic(recorded, 8)
    plain = s.decode_context_tokens
    assert (counted[s.num_chunks > 0] == plain[s.num_chunks > 0]).all()
    phase = recorded.phase_index("dec8")
    same = (s.phase == phase) & (s.num_chunks == 0) & (s.decodes == 8)
    assert same.sum() > 10
    contexts = decode_contexts(recorded)[int(np.flatnonzero(same)[-1])]
    assert contexts is not None
    share, usual = busiest_share(contexts, 8), float(typical_share(8, contexts.mean()))
    part = PART
    expected = (1 - part + part * share) / (1 - part + part * usual)
    assert counted[same][-1] / plain[same][-1] == pytest.approx(expected, rel=0.05)


def test_where_it_does_not_apply(recorded: Recording) -> None:
    plain = recorded.steps.decode_context_tokens
    a100 = replace(recorded, server=replace(recorded.server, gpu="a100_sxm"))
    assert (context_of_traffic(a100, 8) == plain).all()  # FlashAttention 2
    q = recorded.requests
    none = replace(
        q,
        **{
            f: getattr(q, f)[:0]
            for f in q.__dataclass_fields__
        },
    )  # fmt: skip
    assert (context_of_traffic(replace(recorded, requests=none), 8) == plain).all()
