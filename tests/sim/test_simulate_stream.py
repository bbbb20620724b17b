"""A streamed run: the rows of the whole run, its sums, and percentiles within their error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError, TraceError
from qsim.profiles.schema import Profile
from qsim.sim.results.histogram import RELATIVE_ERROR
from qsim.sim.results.requests import request_writer
from qsim.sim.results.slo import Slo, attainment, parse_slos
from qsim.sim.simulate import simulate
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.load import load_trace
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

SLOS = parse_slos(["ttft:p99:60", "tpot:mean:6", "itl:p99.9:40", "e2el:median:900"])


def _parts(trace: Trace, size: int) -> Iterator[Trace]:
    for begin in range(0, len(trace), size):
        yield trace.take(np.arange(begin, min(begin + size, len(trace))))


def _profile() -> Profile:
    return make_profile(num_gpu_blocks=30_000)


@pytest.fixture(scope="module")
def trace() -> Trace:
    found = load_trace("azure-conv-2023:requests=1500,rate=12,seed=4")
    assert (found.prompt_tokens > 4000).any()
    return found


OPTIONS: dict[str, Any] = {"replicas": 3, "router": "power-of-two", "seed": 5, "too_long": "reject"}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("max_model_len", [4000, None])
def test_rows_and_summary_are_those_of_the_whole_run(
    trace: Trace, size: int, max_model_len: int | None, tmp_path: Path
) -> None:
    profile = _profile() if max_model_len is None else make_profile(max_model_len=max_model_len)
    whole = simulate(trace, profile, **OPTIONS)
    assert whole.completed.all() == (max_model_len is None)
    whole.write_requests(tmp_path / "whole.csv")
    with request_writer(tmp_path / "parts.csv") as rows:
        run = simulate_stream(_parts(trace, size), profile, slos=SLOS, rows=rows, **OPTIONS)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()

    one, all_ = run.summary(SLOS), whole.summary(SLOS)
    assert list(one) == list(all_)
    assert one["scenario"]["trace"] == trace.name
    for key, exact in all_.items():
        if key.startswith(("median_", "p90_", "p99_")):
            assert one[key] == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))
        elif key.startswith("mean_"):
            assert one[key] == pytest.approx(exact, rel=1e-12)
        elif key == "intervals_90":
            for name, ends in exact.items():
                assert one[key][name] == pytest.approx(ends, rel=RELATIVE_ERROR * 1.01)
        elif key == "load":
            assert one[key]["verdict"] == exact["verdict"]
            assert run.load.drift == pytest.approx(whole.load.drift, abs=1e-6)
        elif key != "slos":
            assert one[key] == exact, key
    for got, exact in zip(one["slos"], all_["slos"], strict=True):
        assert got["slo"] == exact["slo"]
        assert got["value_ms"] == pytest.approx(exact["value_ms"], rel=RELATIVE_ERROR * 1.01)
    assert run.attainment() == attainment(whole, SLOS)
    assert 0 < (run.attainment() or 0) < 1


def test_requests_of_one_token(tmp_path: Path) -> None:
    trace = Trace(np.arange(10) / 10, np.full(10, 50), np.ones(10, np.int64))
    whole = simulate(trace, _profile())
    run = simulate_stream(_parts(trace, 4), _profile(), slos=SLOS)
    assert math.isnan(run.statistic("tpot", "p99"))
    assert math.isnan(run.statistic("itl", "mean"))
    assert run.summary(SLOS)["mean_tpot_ms"] is None
    assert attainment(run, SLOS) == attainment(whole, SLOS)


@pytest.mark.parametrize("ending", [".csv.gz", ".parquet"])
def test_other_kinds_of_files_hold_the_same_rows(trace: Trace, ending: str, tmp_path: Path) -> None:
    simulate(trace, _profile()).write_requests(tmp_path / f"whole{ending}")
    path = tmp_path / f"parts{ending}"
    with request_writer(path) as rows:
        simulate_stream(_parts(trace, 400), _profile(), rows=rows)
    if ending == ".parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(path).equals(pq.read_table(tmp_path / f"whole{ending}"))
    else:
        assert path.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_a_file_of_requests_appears_whole_or_not_at_all(trace: Trace, tmp_path: Path) -> None:
    def broken() -> Iterator[Trace]:
        yield from _parts(trace.head(600), 100)
        raise TraceError("line 601 is no request")

    with pytest.raises(TraceError, match="line 601"), request_writer(tmp_path / "r.csv") as rows:
        simulate_stream(broken(), _profile(), rows=rows)
    assert list(tmp_path.iterdir()) == []


def test_parts_must_be_in_order(trace: Trace) -> None:
    parts = list(_parts(trace, 700))
    with pytest.raises(TraceError, match=r"arrival_s of request 1400 .* parts must be in order"):
        simulate_stream([parts[0], parts[1], parts[0]], _profile())


def test_prompts_that_are_too_long(trace: Trace) -> None:
    short = make_profile(max_model_len=4000)
    first = int(np.argmax(trace.prompt_tokens >= 4000))
    with pytest.raises(TraceError, match=f"prompt_tokens of request {first} is "):
        simulate_stream(_parts(trace, 10), short)
    tiny = make_profile(max_model_len=2)
    with pytest.raises(TraceError, match="1500 of 1500 requests are too long"):
        simulate_stream(_parts(trace, 10), tiny, too_long="reject")


def test_no_part_is_an_error() -> None:
    with pytest.raises(TraceError, match="no request"):
        simulate_stream([], _profile())


def test_good_requests_are_counted_for_the_slos_of_the_run(trace: Trace) -> None:
    run = simulate_stream(_parts(trace.head(50), 20), _profile(), slos=SLOS)
    with pytest.raises(ScenarioError, match=r"ttft:p99:1; .*give them to simulate_stream"):
        run.count_good([Slo.parse("ttft:p99:1")])


def test_progress_counts_requests(trace: Trace) -> None:
    seen: list[int] = []
    simulate_stream(_parts(trace, 400), _profile(), progress=seen.append)
    assert seen == sorted(set(seen))
    assert len(seen) > 5
    assert seen[-1] == 1500
