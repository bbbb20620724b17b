from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.sim.results.goodput import Goodput, GoodputOutcome, goodput_goal
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def goal(*limits: str, share: float | None = None) -> Goodput:
    found = goodput_goal(limits, share)
    assert found is not None
    return found


def test_it_counts_the_requests_within_every_limit() -> None:
    rng = np.random.default_rng(5)
    trace = Trace(
        np.cumsum(rng.exponential(1 / 40, 200)),
        rng.integers(20, 6000, 200),
        rng.integers(1, 80, 200),
    )
    result = simulate(
        trace, make_profile(), options=EngineOptions(max_model_len=5000), too_long="reject"
    )
    ttft = float(np.quantile(result.metric("ttft"), 0.8))
    tpot = float(np.quantile(result.metric("tpot"), 0.7))
    good = 0
    for i in range(200):
        in_time = result.ttft_ms[i] <= ttft
        single = result.output_tokens[i] == 1
        good += bool(result.completed[i] and in_time and (single or result.tpot_ms[i] <= tpot))
    assert 0 < good < 190
    assert not result.completed.all()
    found = goal(f"ttft:{ttft!r}", f"tpot:{tpot!r}").check(result)
    assert found.share == good / 200
    assert found.met == (good / 200 >= 0.99)


def test_the_ratio_counts_the_requests_that_are_not_good() -> None:
    wanted = goal("ttft:500", share=0.98)
    assert GoodputOutcome(wanted, 0.96).ratio == pytest.approx(2)
    assert GoodputOutcome(wanted, 1.0).ratio == 0
    assert GoodputOutcome(wanted, 0.98).met
    strict = goal("ttft:500", share=1.0)
    assert GoodputOutcome(strict, 0.999).ratio == math.inf
    text = GoodputOutcome(wanted, 0.961).sentence()
    assert text == "goodput 96.1%, 1.9 points under the 98% of requests that must be good"


def test_limits_come_from_the_slos_where_only_a_share_is_given() -> None:
    slos = [Slo.parse(s) for s in ("ttft:p99:500", "ttft:mean:200", "itl:p99:9", "tpot:p50:40")]
    found = goodput_goal((), 0.9, slos)
    assert found == Goodput((("ttft", 200.0), ("tpot", 40.0)), 0.9)
    assert str(found) == "goodput:ttft:200,tpot:40:0.9"
    assert goodput_goal((), None, slos) is None


@pytest.mark.parametrize(
    ("limits", "share", "words"),
    [
        (("itl:5",), None, "goodput is 'itl:5'"),
        (("ttft",), None, "goodput is 'ttft'"),
        (("ttft:0",), None, "goodput is 'ttft:0'"),
        (("ttft:5", "ttft:6"), None, "each once"),
        (("ttft:5",), 0, "min_goodput is 0"),
        (("ttft:5",), 1.01, "min_goodput is 1.01"),
        ((), 0.9, "there is no limit"),
    ],
)
def test_wrong_goals(limits: tuple[str, ...], share: Any, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        goodput_goal(limits, share)
