from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qsim
from qsim.errors import ScenarioError
from qsim.optimize.search import journal as run_journal
from qsim.optimize.search.space import Choices, Range, Space
from qsim.optimize.sweep import sweeping as module
from qsim.optimize.sweep.sweeping import SweepResult, latin_hypercube, sweep
from qsim.sim.fleet.pool import Pool
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def traffic() -> Trace:
    rng = np.random.default_rng(2)
    return Trace(
        np.cumsum(rng.exponential(1 / 30, 40)),
        rng.integers(100, 3000, 40),
        rng.integers(1, 60, 40),
        name="traffic",
    )


def base() -> dict[str, Any]:
    return {"trace": traffic(), "profile": make_profile()}


OVER = {"replicas": [1, 2], "max_num_seqs": [4, 64], "growth": [1.0, 2.0]}


def run(**more: Any) -> SweepResult:
    return sweep(base(), OVER, slos=["ttft:p99:500"], **more)


def test_a_row_has_the_figures_of_its_run() -> None:
    rows = run().to_rows()
    assert [(r["replicas"], r["max_num_seqs"], r["growth"]) for r in rows] == [
        (n, s, g) for n in (1, 2) for s in (4, 64) for g in (1.0, 2.0)
    ]
    row = rows[5]
    result = simulate(
        traffic().speed(2.0), make_profile(), replicas=2, options=EngineOptions(max_num_seqs=4)
    )
    assert row["energy_j"] == result.energy_j
    assert row["p99_ttft_ms"] == result.statistic("ttft", "p99")
    assert row["usd_per_hour"] == 8.0
    assert row["error"] is None
    assert all(list(r) == list(rows[0]) for r in rows)


def mixed(weights: tuple[float, float] = (2.0, 1.0)) -> dict[str, Any]:
    slow = make_profile(method="int8-w8a8", gpu="a100_sxm", decode_ms=8.0)
    pools = [
        Pool(make_profile(), 1, EngineOptions(max_num_seqs=8), weights[0]),
        Pool(slow, 2, EngineOptions(), weights[1]),
    ]
    return {"trace": traffic(), "pools": pools}


def test_pools_of_a_mixed_fleet_are_varied(tmp_path: Path) -> None:
    over = {"fleet.pools.1.replicas": [1, 2], "fleet.pools.0.weight": [2.0, 5.0]}
    asked = {"slos": ["ttft:p99:500"], "prices": {"h200_sxm": 4.0, "a100_sxm": 1.5}}
    rows = sweep(mixed(), over, **asked).to_rows()
    assert [(r["fleet.pools.1.replicas"], r["fleet.pools.0.weight"]) for r in rows] == [
        (n, w) for n in (1, 2) for w in (2.0, 5.0)
    ]
    for row in rows:
        fast, slow = mixed((row["fleet.pools.0.weight"], 1.0))["pools"]
        result = simulate(
            traffic(), pools=[fast, replace(slow, replicas=row["fleet.pools.1.replicas"])]
        )
        assert row["energy_j"] == result.energy_j
        assert row["p99_ttft_ms"] == result.statistic("ttft", "p99")
        assert row["replicas"] == row["gpus"] == 1 + row["fleet.pools.1.replicas"]
        assert row["usd_per_hour"] == 4.0 + 1.5 * row["fleet.pools.1.replicas"]
        assert row["profile"] == "h200_sxm/toy-1b/bf16 + a100_sxm/toy-1b/int8-w8a8"
        assert row["error"] is None
    assert len({r["energy_j"] for r in rows}) == 4, "counts and weights change what is simulated"
    journal = tmp_path / "rows.jsonl"
    first = sweep(mixed(), {k: v[:1] for k, v in over.items()}, journal=journal, **asked)  # type: ignore[index]
    resumed = sweep(mixed(), over, journal=journal, resume=True, jobs=2, **asked)
    assert resumed.to_rows() == rows
    assert first.to_rows()[0] == rows[0]


def test_the_quality_of_a_mixed_fleet_is_that_of_its_worst_pool() -> None:
    ids = [f"h200_sxm/llama-3.1-8b/{m}" for m in ("bf16", "awq-w4a16")]
    short = {"trace": "azure-conv-2023:duration=2,rate=2"}
    over = {"fleet.pools.0.replicas": [1]}
    (row,) = sweep({**short, "pools": [Pool(i) for i in ids]}, over).to_rows()
    alone = [sweep({**short, "profile": i}, {"replicas": [1]}).to_rows()[0] for i in ids]
    assert row["quality_low"] == min(r["quality_low"] for r in alone) < 100


def test_the_same_rows_in_processes_on_dask_and_when_workers_die(
    dask_address: str, others: set[object]
) -> None:
    expected = run()
    killed: list[int] = []

    def kill(share: float, text: str) -> None:
        if not killed:
            for child in set(multiprocessing.active_children()) - others:
                assert isinstance(child.pid, int)
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    assert run(jobs=2, progress=kill) == expected
    assert killed
    assert run(dask=dask_address) == expected


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, journal = run(), tmp_path / "rows.jsonl"

    class Stop(BaseException):
        pass

    def stop(share: float, text: str) -> None:
        if text.startswith("5 of"):
            raise Stop

    with pytest.raises(Stop):
        run(journal=journal, progress=stop)
    torn = journal.read_bytes()[:-20]
    journal.write_bytes(torn)
    measured: list[Any] = []
    measure = module.measure_fleet

    def count(task: Any) -> Any:
        measured.append(task)
        return measure(task)

    monkeypatch.setattr(module, "measure_fleet", count)
    assert run(journal=journal, resume=True) == expected
    assert len(measured) == 8 - 4, "the run whose line was torn is done again"
    assert run(journal=journal, resume=True) == expected
    assert len(measured) == 4
    with pytest.raises(ScenarioError, match=r"holds 8 finished runs .*--resume"):
        run(journal=journal)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ScenarioError, match="damaged: line 3"):
        run(journal=journal, resume=True)
    journal.write_text("".join(lines))
    # other traffic is another run
    sweep(base() | {"seed": 1}, OVER, slos=["ttft:p99:500"], journal=journal, resume=True)
    assert len(measured) == 12


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_run_is_kept_as_soon_as_it_is_finished(tmp_path: Path, jobs: int) -> None:
    journal = tmp_path / "rows.jsonl"

    def look(share: float, text: str) -> None:
        assert len(journal.read_text().splitlines()) == int(text.split()[0])

    assert run(journal=journal, jobs=jobs, progress=look) == run()


def test_a_journal_that_cannot_be_written_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, left = run_journal.append_lines, [3]

    def full(path: Path, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return append(path, *args)

    expected, journal = run(), tmp_path / "rows.jsonl"
    monkeypatch.setattr(run_journal, "append_lines", full)
    found = run(journal=journal)
    assert found.rows == expected.rows
    assert found.notes == (f"{journal}: No space left on device; runs after that were not kept",)
    assert len(journal.read_text().splitlines()) == 3


def test_a_sweep_of_failures_leaves_no_journal(tmp_path: Path) -> None:
    journal = tmp_path / "rows.jsonl"
    with pytest.raises(ScenarioError, match="every one of 2 runs failed"):
        sweep(base(), {"num_gpu_blocks_override": [4], "seed": [0, 1]}, journal=journal)
    assert not journal.exists()


def test_a_latin_hypercube_has_each_stratum_once() -> None:
    space = Space({"rate": Range(10.0, 20.0), "seats": Range(1, 40), "m": Choices(("a", "b"))})
    points = latin_hypercube(space, 20, seed=3)
    assert sorted(int((p["rate"] - 10) * 2) for p in points) == list(range(20))
    assert sorted((p["seats"] - 1) // 2 for p in points) == list(range(20))
    assert sum(p["m"] == "a" for p in points) == 10
    assert points == latin_hypercube(space, 20, seed=3)
    assert points != latin_hypercube(space, 20, seed=4)
    result = sweep(base(), ["replicas=1:3", "growth=0.5:4:log"], lhs=6)
    assert len(result.rows) == 6
    assert all(0.5 <= r.values["growth"] <= 4 for r in result.rows)


def test_presets_and_ids_are_taken_apart() -> None:
    result = sweep(
        {"trace": "azure-conv-2023:duration=5,rate=1", "profile": "h200_sxm/llama-3.1-8b/bf16"},
        {"rate": [4, 8], "method": ["bf16", "fp8-w8a8"], "seed": [0, 1]},
        region="DEU",
    )
    rows = {tuple(r.values.values()): r.figures for r in result.rows}
    trace = qsim.load_trace("azure-conv-2023:duration=5,rate=8", seed=1)
    expected = simulate(trace, "h200_sxm/llama-3.1-8b/fp8-w8a8", seed=1)
    assert rows[8, "fp8-w8a8", 1]["energy_j"] == expected.energy_j
    assert rows[8, "fp8-w8a8", 1]["profile"] == "h200_sxm/llama-3.1-8b/fp8-w8a8"
    assert rows[8, "bf16", 0]["quality"] == 100.0
    assert rows[8, "bf16", 0]["gco2e"] > 0


def test_prices_are_given_or_of_a_class_of_provider() -> None:
    given = sweep(base(), {"replicas": [2]}, prices={"h200_sxm": 1.5})
    assert given.rows[0].figures["usd_per_hour"] == 3.0
    dear = sweep(base(), {"replicas": [1]}, provider="hyperscaler")
    assert dear.rows[0].figures["usd_per_hour"] > 4.0
    with pytest.raises(ScenarioError, match="provider is 'mine'"):
        sweep(base(), {"replicas": [1]}, provider="mine")


def test_a_run_that_fails_keeps_its_row() -> None:
    result = sweep(base(), {"num_gpu_blocks_override": [4, 4096]})
    assert "too long" in result.rows[0].error
    assert result.rows[1].error == ""
    rows = result.to_rows()
    assert rows[0]["energy_j"] is None
    with pytest.raises(ScenarioError, match="every one of 2 runs failed"):
        sweep(base(), {"num_gpu_blocks_override": [4], "seed": [0, 1]})


@pytest.mark.parametrize(
    ("given", "over", "words"),
    [
        (base(), {"max_seqs": [1]}, "did you mean max_num_seqs"),
        (base() | {"colour": 1}, {"replicas": [1]}, "'colour' is no part"),
        (base(), {"profile": ["a"], "method": ["b"]}, "cannot both be varied"),
        (base(), {"rate": [3]}, "vary growth"),
        (base(), {"method": ["bf16"]}, "as an id"),
        ({"trace": "x.csv", "profile": make_profile()}, {"rate": [1]}, "the file 'x.csv'"),
        ({"trace": traffic(), "profile": "x.json"}, {"method": ["bf16"]}, "vary profile"),
        ({"trace": traffic(), "model": "llama-3.1-8b"}, {"seed": [1]}, "model and method"),
        ({"trace": traffic()}, {"seed": [1]}, "profile is missing"),
        ({"profile": make_profile()}, {"seed": [1]}, "trace is missing"),
        (base(), {}, "nothing to decide"),
    ],
)
def test_wrong_arguments_are_named(given: Any, over: Any, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        sweep(given, over)
    with pytest.raises(ScenarioError):
        sweep(base(), {"replicas": [1]}, lhs=0)
    with pytest.raises(ScenarioError, match="journal"):
        sweep(base(), {"replicas": [1]}, resume=True)


def test_files_hold_the_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = sweep(base(), {"router": ["random", "vllm"], "num_gpu_blocks_override": [4, 4096]})
    rows = result.to_rows()
    for ending in ("csv", "json", "parquet"):
        result.write(str(tmp_path / f"rows.{ending}"))
    data = json.loads((tmp_path / "rows.json").read_text())
    assert data["rows"] == rows
    assert data["settings"]["over"] == {"router": "random,vllm",
                                        "num_gpu_blocks_override": "4,4096"}  # fmt: skip
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0].split(",")[:3] == ["run", "router", "num_gpu_blocks_override"]
    assert len(lines) == 5
    with pytest.raises(ScenarioError, match=r"\.csv, \.json or \.parquet"):
        result.write("rows.xlsx")
