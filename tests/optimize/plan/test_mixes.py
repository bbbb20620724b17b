"""Mixed fleets under stock limits: found, told, exported, and simulated again."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.deploy.export import export_plan
from qsim.optimize.plan.detail import DetailWanted
from qsim.optimize.plan.mix_search import MOST_COUNTS, _smallest_above
from qsim.optimize.plan.planning import plan
from qsim.optimize.plan.result import Plan
from qsim.optimize.search.fleet_task import FleetTask, TaskPool, run_fleet
from qsim.report.text.plan import plan_rows, plan_text
from qsim.sim.results.slo import parse_slos
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace
from tests.cli.helpers import qsim
from tests.make_profile import make_profile

SLOS = ("ttft:p95:500", "tpot:mean:12")
PRICES = {"h200_sxm": 4.0, "a100_sxm": 1.5}
FAST = make_profile(method="fp8-w8a8", decode_ms=4.0)
SLOW = make_profile(method="bf16", gpu="a100_sxm", decode_ms=7.0)


def traffic(n: int = 160, rate: float = 110.0, seed: int = 1) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 2500, n),
        rng.integers(1, 250, n),
        name="traffic",
    )


def stocked(h200: int, a100: int, **more: Any) -> Plan:
    asked = {"slos": SLOS, "prices": PRICES, "headroom": False, "replications": 0, **more}
    stock = {"h200_sxm": h200, "a100_sxm": a100}
    return plan(traffic(), profiles=[FAST, SLOW], stock=stock, **asked)


def fleet(fast: int, slow: int, weight: float, trace: Trace | None = None) -> FleetTask:
    options = EngineOptions()
    base = FleetTask(
        traffic() if trace is None else trace, FAST, 1, parse_slos(SLOS), options,
        "least-requests", 0, "error",
    )  # fmt: skip
    pools = [TaskPool(SLOW, slow, options), TaskPool(FAST, fast, options, weight)]
    return base.of_pools([p for p in pools if p.replicas])


@pytest.fixture(scope="module")
def sizes() -> tuple[int, int]:
    """Servers of each that suffice alone."""
    found = plan(traffic(), profiles=[FAST, SLOW], slos=SLOS, prices=PRICES, headroom=False,
                 replications=0)  # fmt: skip
    by = {c.gpu: c.replicas or 0 for c in found.candidates}
    assert by["h200_sxm"] >= 3
    assert by["a100_sxm"] >= 4
    return by["h200_sxm"], by["a100_sxm"]


@pytest.fixture(scope="module")
def answer(sizes: tuple[int, int]) -> Plan:
    """One H200 less than it takes alone, and half of the A100s."""
    return stocked(sizes[0] - 1, (sizes[1] + 1) // 2)


def test_no_pure_fleet_fits_and_the_mix_is_the_best_of_all(
    answer: Plan, sizes: tuple[int, int]
) -> None:
    best = answer.best
    assert best is not None
    assert len(best.parts) == 2
    assert answer.mixes is not None
    assert answer.mixes.beats
    counts = {p.blank.gpu: p.replicas for p in best.parts}
    weight = next(p.weight for p in best.parts if p.blank.gpu == "h200_sxm")
    assert weight > 1, "the faster server gets more"
    most = sizes[0] - 1, (sizes[1] + 1) // 2
    costs = {
        4.0 * i + 1.5 * j: (i, j)
        for i, j in product(range(most[0] + 1), range(most[1] + 1))
        if i + j and run_fleet(fleet(i, j, weight)).met
    }
    assert all(i and j for i, j in costs.values()), "the stock holds no pure fleet"
    assert best.usd_per_hour == min(costs)
    assert (counts["h200_sxm"], counts["a100_sxm"]) == costs[min(costs)]
    pure = [c for c in answer.candidates if not c.parts]
    assert not any(c.feasible for c in pure)
    assert all("in stock (--stock" in c.reason for c in pure)
    assert all(c.shortfall is not None and c.shortfall.constraint == "stock" for c in pure)
    text = " ".join(plan_text(answer).split())
    assert "no fleet of one profile meets the limits with the GPUs in stock" in text
    assert f"{counts['h200_sxm']} x {FAST.id} (weight {weight:g})" in text
    assert "no fleets of three pools" in text


def test_a_mix_that_costs_less_than_a_pure_fleet_in_stock(sizes: tuple[int, int]) -> None:
    prices = {"h200_sxm": 4.0, "a100_sxm": 4.0 * sizes[0] / sizes[1] * 0.7}
    found = stocked(sizes[0], sizes[1] - 1, prices=prices)
    best = found.best
    assert best is not None
    assert best.parts
    pure = next(c for c in found.candidates if c.feasible and not c.parts)
    assert best.worth("cost") < pure.worth("cost")
    assert f"beats every fleet of one profile: {1 - best.worth('cost') / pure.worth('cost'):.1%} " \
        "less cost" in " ".join(plan_text(found).split())  # fmt: skip


def test_a_pure_fleet_that_no_mix_beats(sizes: tuple[int, int]) -> None:
    prices = {"h200_sxm": 1.0, "a100_sxm": 40.0}
    found = stocked(sizes[0], 4, prices=prices)
    assert found.best is not None
    assert not found.best.parts
    assert found.mixes is not None
    assert not found.mixes.beats
    assert found.mixes.simulations == 0, "no mix with an A100 can cost less: none is simulated"
    assert "no mix that was tried has less cost" in " ".join(plan_text(found).split())


def test_without_a_stock_nothing_is_mixed() -> None:
    asked: dict[str, Any] = {"slos": SLOS, "prices": PRICES, "replications": 0, "headroom": False}
    data = plan(traffic(60), profiles=[FAST, SLOW], **asked).to_dict()
    assert "mixes" not in data
    assert "stock" not in data["budget"]
    assert not any("pools" in c for c in data["candidates"])


def test_json_and_table(answer: Plan) -> None:
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    best = data["candidates"][0]
    assert data["best"] == best["profile"] == f"{SLOW.id} + {FAST.id}"
    assert data["budget"]["stock"] == answer.budget.stock
    assert data["mixes"]["beats_every_pure_fleet"] is True
    assert data["mixes"]["pairs"] == [[SLOW.id, FAST.id]]
    assert sum(p["gpus"] for p in best["pools"]) == best["gpus"] == best["replicas"]
    assert sum(p["usd_per_hour"] for p in best["pools"]) == pytest.approx(best["usd_per_hour"])
    assert best["serve_command"].count("vllm serve") == 2
    assert best["evaluations"][-1]["pools"]
    heads, rows = plan_rows(answer)
    assert dict(zip(heads, rows[0], strict=True))["profile"] == "mix 1"


def test_the_same_answer_from_two_processes(answer: Plan, sizes: tuple[int, int]) -> None:
    again = stocked(sizes[0] - 1, (sizes[1] + 1) // 2, jobs=2)
    assert json.dumps(again.to_dict()) == json.dumps(answer.to_dict())


def test_expected_finish_needs_no_weights(sizes: tuple[int, int]) -> None:
    found = stocked(sizes[0] - 1, sizes[1] - 1, router="expected-finish").best
    assert found is not None
    assert {p.weight for p in found.parts} == {1.0}


def test_manifests_and_commands_of_every_pool(answer: Plan) -> None:
    best = answer.best
    assert best is not None
    objects = list(yaml.safe_load_all(export_plan(answer, "kubernetes") or ""))
    deployments = [o for o in objects if o["kind"] == "Deployment"]
    assert len({d["metadata"]["name"] for d in deployments}) == 2
    for deployment, part in zip(deployments, best.parts, strict=True):
        assert deployment["spec"]["replicas"] == part.replicas
        notes = deployment["metadata"]["annotations"]
        assert notes["qsim/profile"] == part.blank.profile
        assert float(notes["qsim/router-weight"]) == part.weight
        assert notes["qsim/simulated-router"] == "least-requests"
    script = export_plan(answer, "vllm") or ""
    assert script.count("vllm serve") == best.replicas
    assert all(f"with weight {p.weight:g} in it" in script for p in best.parts)
    assert "# 2 machines: run it on each" in script, "no machine has GPUs of two types"


def test_profiles_of_two_models_are_not_mixed() -> None:
    other = replace(SLOW, identity=replace(SLOW.identity, model="toy-2b"))
    found = plan(
        traffic(60), profiles=[FAST, other], slos=("ttft:p50:9000",), prices=PRICES,
        stock={"h200_sxm": 1, "a100_sxm": 1}, replications=0, headroom=False,
    )  # fmt: skip
    assert found.mixes is None
    assert not any(c.parts for c in found.candidates)


def test_the_page_and_the_picture_of_a_plan_with_a_mix(answer: Plan, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from qsim.report.html.reports import write_plan_report

    best = answer.best
    assert best is not None
    write_plan_report(tmp_path / "plan.html", answer)
    page = (tmp_path / "plan.html").read_text()
    first = best.parts[0]
    assert f"Recommended: {first.replicas} x {first.blank.profile}" in page
    assert "in stock: it takes a mix" in page


def test_confidence_headroom_and_detail_of_a_mix(sizes: tuple[int, int]) -> None:
    found = plan(
        traffic(), profiles=[FAST, SLOW], slos=SLOS, prices=PRICES,
        stock={"h200_sxm": sizes[0] - 1, "a100_sxm": sizes[1] - 1},
        detail=DetailWanted(2, sensitivity=True, bottlenecks=True),
    )  # fmt: skip
    best, detail = found.best, found.detail
    assert best is not None
    assert best.parts
    assert found.headroom is not None
    assert found.headroom.broken is not None
    assert detail is not None
    assert detail.confidence is not None
    assert detail.confidence.pools == 2
    assert len(detail.confidence.runs) == 2
    assert {r.replicas for r in detail.confidence.runs} == {best.replicas}
    assert detail.sensitivity
    assert detail.shares is not None
    assert detail.changes is not None
    assert any("one server more of" in e.name for e in detail.changes.effects)


def test_a_mix_grows_for_confidence_within_the_stock(sizes: tuple[int, int]) -> None:
    asked = {"replications": 4, "min_confidence": 1.0}
    tight = stocked(sizes[0] - 1, (sizes[1] + 1) // 2).best
    assert tight is not None
    slack = stocked(sizes[0] - 1, sizes[1] - 1, **asked).best
    assert slack is not None
    assert slack.usd_per_hour is not None
    for c in stocked(sizes[0] - 1, (sizes[1] + 1) // 2, **asked).candidates:
        if c.parts and c.outcome is not None:
            used = c.gpus_by_type(c.outcome.sizes)
            assert used["h200_sxm"] <= sizes[0] - 1
            assert used["a100_sxm"] <= (sizes[1] + 1) // 2


def test_a_mix_that_survives_a_server_of_each_pool(sizes: tuple[int, int]) -> None:
    found = stocked(sizes[0], sizes[1], survive=1)
    best = found.best
    assert best is not None
    assert best.parts, "one more of either is not in stock"
    assert best.outcome is not None
    assert {d.down.split(" of ")[0] for d in best.outcome.degraded} == {"with 1"}
    assert len(best.outcome.degraded) == 2
    for part in best.outcome.degraded:
        weights = [p.weight for p in best.parts]
        assert part.sizes != best.outcome.sizes
        assert run_fleet(fleet(part.sizes[1], part.sizes[0], weights[1] / weights[0])).met
    assert best.spare_gpus == 1


@pytest.mark.parametrize(
    ("stock", "words"),
    [
        ({"h100_sxm": 8}, "stock has gpu 'h100_sxm', which no profile in this plan uses"),
        ({"h200_sxm": 0}, "stock.h200_sxm is 0"),
        ({"h200_sxm": True}, "h200_sxm is True"),
        ({"h200_sxm": 1 << 40}, "h200_sxm is 1099511627776"),
    ],
)
def test_a_stock_that_is_not_allowed(stock: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(words)):
        plan(traffic(20), profiles=[FAST], slos=SLOS, stock=stock)


def test_gpus_that_are_not_in_stock_are_none() -> None:
    found = plan(traffic(40), profiles=[FAST, SLOW], slos=("ttft:p50:9000",),
                 stock={"a100_sxm": 2}, prices=PRICES, replications=0, headroom=False)  # fmt: skip
    other = next(c for c in found.candidates if c.gpu == "h200_sxm")
    assert not other.feasible
    assert other.reason == "one server needs 1 h200_sxm, and none is in stock (--stock)"
    assert other.outcome is None, "nothing is simulated for it"
    two = replace(FAST, identity=replace(FAST.identity, tensor_parallel_size=4))
    (c,) = plan(traffic(20), profiles=[two], slos=SLOS, stock={"h200_sxm": 3}).candidates
    assert c.reason == "one server needs 4 h200_sxm, and 3 are in stock (--stock)"


def files(tmp_path: Path) -> list[str]:
    words: list[str] = []
    for profile in (FAST, SLOW):
        path = tmp_path / f"{profile.identity.method}.json"
        profile.save(path)
        words += ["--profile", str(path)]
    return words


def saved(tmp_path: Path) -> str:
    trace, path = traffic(), tmp_path / "trace.csv"
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    lines = [f"{a!r},{p},{o}" for a, p, o in ((float(a), p, o) for a, p, o in rows)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    return str(path)


def test_the_printed_command_and_the_scenario_give_the_mix_s_figures(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    prices = [w for g, usd in PRICES.items() for w in ("--price", f"{g}={usd}")]
    stock = ["--stock", f"h200_sxm={sizes[0] - 1}", "--stock", f"a100_sxm={sizes[1] - 1}"]
    slos = [w for s in SLOS for w in ("--slo", s)]
    found = qsim(
        "plan", saved(tmp_path), *files(tmp_path), *slos, *prices, *stock, "--jobs", 1,
        "--no-headroom", "--replications", 0, "--max-num-seqs", 48, "--growth", 1.1,
        "--json", tmp_path / "plan.json", "--export", f"scenario={tmp_path}/fleet.yaml",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    best = json.loads((tmp_path / "plan.json").read_text())["candidates"][0]
    assert len(best["pools"]) == 2
    (command,) = re.findall("^its figures: qsim (.*)$", found.stdout, re.MULTILINE)
    for words in (shlex.split(command), ["simulate", f"{tmp_path}/fleet.yaml"]):
        again = qsim(*words, "--json", tmp_path / "again.json")
        assert again.exit_code == 0, again.output
        summary = json.loads((tmp_path / "again.json").read_text())
        for key in ("energy_j", "p99_ttft_ms", "mean_tpot_ms", "request_throughput", "duration"):
            assert summary[key] == best[key], key
        assert [p["replicas"] for p in summary["pools"]] == [p["replicas"] for p in best["pools"]]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--stock", "h200_sxm"], "--stock is 'h200_sxm'; must be GPU=N"),
        (["--stock", "h200_sxm=1", "--stock", "h200_sxm=2"], "--stock gives h200_sxm twice"),
        (["--stock", "h200_sxm=0"], "stock"),
        (["--stock", "b200=2"], "stock has gpu 'b200', which no profile in this plan uses"),
    ],
)
def test_wrong_stocks_on_the_command_line(words: list[str], error: str, tmp_path: Path) -> None:
    found = qsim("plan", saved(tmp_path), *files(tmp_path), "--slo", "ttft:p99:900", *words)
    assert found.exit_code == 2, found.output
    assert error in " ".join(found.stderr.split())


@given(
    low=st.integers(0, 5), span=st.integers(1, 40), at=st.integers(0, 60), guess=st.integers(1, 60)
)
def test_the_smallest_count_is_found_from_any_guess(
    low: int, span: int, at: int, guess: int
) -> None:
    most, enough = low + span, low + 1 + at
    search = _smallest_above(low, min(max(low + 1, guess), most), most)
    asked = [next(search)]
    try:
        while True:
            asked.append(search.send(asked[-1] >= enough))
    except StopIteration as stop:
        found = stop.value
    assert found == (enough if enough <= most else None)
    assert len(asked) == len(set(asked)), "nothing is simulated twice"
    assert all(low < n <= most for n in asked)
    assert len(asked) <= 2 * span.bit_length() + 2


def test_counts_of_a_large_stock_are_spread() -> None:
    from qsim.optimize.plan.mix_search import Pair

    pair = Pair.__new__(Pair)
    object.__setattr__(pair, "most", (100, 300))
    counts = pair.counts()
    assert len(counts) == len(set(counts)) == MOST_COUNTS
    assert counts[0] == 100
    assert counts[-1] == 1


@settings(max_examples=6)
@given(
    seed=st.integers(0, 10_000), fast=st.integers(1, 3), slow=st.integers(1, 4),
    more=st.integers(0, 1), weight=st.sampled_from([1.5, 2.0, 3.0]),
)  # fmt: skip
def test_more_servers_are_never_worse_beyond_noise(
    seed: int, fast: int, slow: int, more: int, weight: float
) -> None:
    """What the search takes for granted of mixes: a fleet that meets its limits goes on doing so.

    Noise: a percentile of so few requests moves by some of them when all are routed anew.
    """
    trace = traffic(120, 60.0, seed)
    before = run_fleet(fleet(fast, slow, weight, trace))
    after = run_fleet(fleet(fast + 1 - more, slow + more, weight, trace))
    if before.met:
        assert after.binding.ratio <= 1.1
