"""The rules of the HPA and of KEDA, on metrics written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.sim.fleet.autoscaling import Autoscaler, ScalingPolicy, ScalingRules, Signal
from qsim.sim.fleet.horizontal import PoolScaler, Reading

FREE = ScalingRules(0, ())


def scaler(first: int = 1, metric: str = "requests", target: float = 10.0, **more) -> PoolScaler:
    signal = Signal(metric, target, more.pop("window_s", None), more.pop("activation", 0.0))
    given = {"scale_up": FREE, "scale_down": FREE, "scrape_s": 0, **more}
    return PoolScaler(Autoscaler((signal,), given.pop("max_replicas", 100), **given), first)


def look(
    scaler: PoolScaler, now_s: float, value: float, starting: int = 0, metric: str = "requests"
) -> int:
    """A scrape and a look, with all servers on that are wanted but those that start."""
    scaler.scrape(now_s, Reading({metric: value}))
    return scaler.sync(now_s, scaler.wanted - starting, starting)


@pytest.mark.parametrize(
    ("first", "value", "wanted"),
    [
        (1, 10.9, 1),  # within 10% of the target
        (1, 11.1, 2),
        (4, 36.0, 4),
        (4, 35.9, 4),  # ceil(3.59)
        (4, 30.0, 3),  # exactly three: in thousandths there is no rounding error
        (4, 0.0, 1),  # never below one
        (2, 5000.0, 100),
    ],
)
def test_keda_wants_the_sum_over_the_target(first: int, value: float, wanted: int) -> None:
    assert look(scaler(first), 15.0, value) == wanted


def test_quotients_are_those_of_thousandths() -> None:
    # 2.1 / 0.7 is above 3 in floating point, and 3 for Kubernetes
    assert 2.1 / 0.7 > 3
    assert look(scaler(1, "kv_usage", 0.7), 15.0, 2.1, metric="kv_usage") == 3


@pytest.mark.parametrize(
    ("on", "starting", "value", "wanted"),
    [
        # calcPlainMetricReplicas: a pod without a value counts as 0 when there are too few
        (2, 2, 60.0, 6),
        (2, 2, 42.0, 4),  # 21 per pod that is on, but 10.5 over all: within the tolerance
        (2, 2, 30.0, 4),  # and if they were few, it would be fewer: nothing is done
        # and as the target when there are too many
        (3, 1, 12.0, 3),
        (3, 1, 26.0, 4),  # (26 + 10) / 40 is within the tolerance
        (4, 0, 12.0, 2),
    ],
)
def test_an_hpa_does_not_know_pods_that_start(
    on: int, starting: int, value: float, wanted: int
) -> None:
    assert look(scaler(on + starting, kind="hpa"), 15.0, value, starting) == wanted


def test_an_hpa_without_a_pod_that_is_on_changes_nothing() -> None:
    assert look(scaler(3, kind="hpa"), 15.0, 0.0, starting=3) == 3


def test_ttft_is_one_value_times_the_servers_that_are_on() -> None:
    found = scaler(2, "ttft", 0.5)
    found.scrape(15.0, Reading({}, first_tokens=0, ttft_s=0.0))
    assert found.sync(15.0, 2, 0) == 1  # nobody came
    found = scaler(2, "ttft", 0.5)
    found.scrape(0.0, Reading({}, first_tokens=10, ttft_s=5.0))
    found.scrape(15.0, Reading({}, first_tokens=20, ttft_s=17.0))  # 1.2 s each
    assert found.sync(15.0, 2, 0) == 5
    assert found.sync(15.0, 2, 3) == 5  # those that start do not count


def test_a_rate_is_over_its_window() -> None:
    found = scaler(1, "request_rate", 2.0, window_s=30)
    for k, arrived in enumerate((0, 100, 160, 220)):
        found.scrape(15.0 * k, Reading({}, arrived=arrived))
    assert found.value(Signal("request_rate", 2.0, 30), 45.0) == pytest.approx(60 / 15)
    assert found.sync(45.0, 1, 0) == 2


def test_whoever_looks_sees_the_scrape_before() -> None:
    found = scaler(1, scrape_s=15)
    assert look(found, 15.0, 90.0) == 1
    assert look(found, 30.0, 10.0) == 9
    assert look(found, 45.0, 10.0) == 1


def test_up_waits_for_the_least_and_down_for_the_most_of_its_window() -> None:
    found = scaler(2, scale_up=ScalingRules(30, ()), scale_down=ScalingRules(60, ()))
    wanted = [look(found, 15.0 * k, v) for k, v in enumerate((50, 50, 50, 90, 10, 10, 10, 10, 10))]
    # the count at the beginning is a wish, too; the peak of 9 is never done, and is no reason to
    # keep more than there are
    assert wanted == [2, 2, 5, 5, 5, 5, 5, 1, 1]


def test_policies_limit_the_change_of_a_period() -> None:
    up = ScalingRules(0, (ScalingPolicy("Pods", 4, 15), ScalingPolicy("Percent", 100, 15)))
    found = scaler(1, scale_up=up)
    assert [look(found, 15.0 * k, 1000) for k in (1, 2, 3, 4)] == [5, 10, 20, 40]
    slow = scaler(1, scale_up=ScalingRules(0, up.policies, "Min"))
    assert [look(slow, 15.0 * k, 1000) for k in (1, 2, 3, 4)] == [2, 4, 8, 12]
    one = ScalingRules(0, (ScalingPolicy("Pods", 1, 60),))
    found = scaler(10, scale_down=one)
    assert [look(found, 15.0 * k, 0) for k in range(1, 10)] == [9, 9, 9, 9, 8, 8, 8, 8, 7]
    half = scaler(9, scale_down=ScalingRules(0, (ScalingPolicy("Percent", 50, 60),)))
    assert [look(half, 60.0 * k, 0) for k in (1, 2, 3, 4)] == [4, 2, 1, 1]
    never = scaler(5, scale_down=ScalingRules(0, (), "Disabled"))
    assert look(never, 15.0, 0) == 5


def test_the_signal_that_wants_most_decides() -> None:
    two = Autoscaler(
        (Signal("waiting", 2.0), Signal("kv_usage", 0.5)), 20, scale_up=FREE, scrape_s=0
    )
    found = PoolScaler(two, 1)
    found.scrape(15.0, Reading({"waiting": 3.0, "kv_usage": 2.6}))
    assert found.sync(15.0, 1, 0) == 6


def test_keda_starts_the_first_server_and_takes_the_last() -> None:
    found = scaler(1, min_replicas=0, cooldown_s=60, activation=1.0)

    def both(now_s: float, value: float) -> int:
        found.scrape(now_s, Reading({"requests": value}))
        found.poll(now_s)
        return found.sync(now_s, found.wanted, 0)

    # the last server goes more than the cooldown after the last activity, by KEDA, not the HPA
    assert [both(30.0 * k, v) for k, v in enumerate((5, 5, 1, 0, 0, 0))] == [1, 1, 1, 1, 0, 0]
    assert both(180.0, 1.0) == 0  # not above the activation
    assert both(210.0, 35.0) == 4  # one, and the HPA makes it four
    kept = scaler(1, min_replicas=1)
    kept.scrape(0.0, Reading({"requests": 0.0}))
    assert kept.poll(1e6) == 1


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.sampled_from(["keda", "hpa"]),
    st.integers(1, 12),
    st.integers(0, 5),
    st.integers(5, 20),
)
@settings(max_examples=200)
def test_it_stays_within_bounds_and_settles(
    values: list[int], kind: str, first: int, least: int, most: int
) -> None:
    least = max(least, 1) if kind == "hpa" else least
    settings_ = Autoscaler((Signal("requests", 10.0),), most, least, kind=kind)
    found = PoolScaler(settings_, min(first, most))
    before = found.wanted
    for k, value in enumerate([*values, *[values[-1]] * 60]):
        now_s = 15.0 * k
        found.scrape(now_s, Reading({"requests": float(value)}))
        if kind == "keda":
            found.poll(now_s)
        wanted = found.sync(now_s, found.wanted, 0)
        assert min(least, 1) <= wanted <= most
        assert wanted - before <= max(4, before)  # the policies
        before = wanted
    # with a load that stays, all is where the load wants it, but for the tolerance
    need = min(max(-(-values[-1] // 10), least), most)
    assert abs(wanted - need) <= max(1, 0.12 * need)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"signals": ()}, "signals of an autoscaler is empty"),
        ({"max_replicas": 0}, "max_replicas is 0"),
        ({"min_replicas": 9}, "min_replicas is 9; must be <= max_replicas 8"),
        ({"kind": "vpa"}, "kind of an autoscaler is 'vpa'"),
        ({"min_replicas": 0, "kind": "hpa"}, "only KEDA scales to zero"),
        ({"signals": (Signal("requests", 1.0, 60),), "kind": "hpa"}, "an hpa takes the last value"),
        ({"signals": (Signal("ttft", 1.0, 20),)}, "window_s of ttft is 20; must be >= 30"),
        ({"signals": (Signal("ttft", 1.0), Signal("ttft", 2.0))}, "has ttft twice"),
        ({"sync_s": 0}, "sync_s is 0"),
        ({"provision_s": -1.0}, "provision_s is -1.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict, text: str) -> None:
    with pytest.raises(ScenarioError, match=text):
        Autoscaler(**{"signals": (Signal("requests", 20.0),), "max_replicas": 8, **given})


def test_other_settings_are_checked() -> None:
    with pytest.raises(ScenarioError, match="metric of a signal is 'cpu'"):
        Signal("cpu", 1.0)
    with pytest.raises(ScenarioError, match="target of waiting is 0"):
        Signal("waiting", 0)
    with pytest.raises(ScenarioError, match="type of a scaling policy"):
        ScalingPolicy("pods", 1, 15)
    with pytest.raises(ScenarioError, match="period_s of a scaling policy is 1801"):
        ScalingPolicy("Pods", 1, 1801)
    with pytest.raises(ScenarioError, match="stabilization_window_s is 3601"):
        ScalingRules(3601)
    with pytest.raises(ScenarioError, match=r"must be a multiple of 0\.001"):
        Autoscaler((Signal("requests", 1 / 3),), 2).check_quantities()
