"""The exported autoscaler is the simulated one: read back, it is the same object."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.cli import main
from qsim.errors import ScenarioError
from qsim.optimize.deploy.autoscaler import autoscaler_manifest, read_autoscaler
from qsim.optimize.deploy.export import export_simulated, servers_of
from qsim.optimize.deploy.kubernetes import manifests, to_yaml
from qsim.scenario import Scenario
from qsim.sim.fleet.autoscaling import (
    METRICS,
    RATES,
    Autoscaler,
    ScalingPolicy,
    ScalingRules,
    Signal,
)
from qsim.sim.simulate import simulate
from qsim.traces import load_trace

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"
METADATA = {"name": "llama-fp8-h200", "annotations": {"qsim/profile": PROFILE}}


@st.composite
def autoscalers(draw: st.DrawFn) -> Autoscaler:
    kind = draw(st.sampled_from(["keda", "hpa"]))
    least = draw(st.integers(0 if kind == "keda" else 1, 5))
    to_zero = kind == "keda" and not least
    scrape_s = draw(st.sampled_from([5, 15, 30, 60]))
    thousandths = st.integers(1, 10**6).map(lambda n: n / 1000)
    signals = []
    for metric in draw(st.lists(st.sampled_from(sorted(METRICS)), min_size=1, unique=True)):
        window_s = draw(st.none() | st.integers(2 * scrape_s, 3600))
        if kind == "hpa" and metric not in RATES:
            window_s = None
        signal = Signal(metric, draw(thousandths), window_s, draw(thousandths) if to_zero else 0.0)
        if window_s == replace(signal, window_s=None).range_s(scrape_s):
            signal = replace(signal, window_s=None)
        signals.append(signal)
    policies = st.lists(
        st.builds(
            ScalingPolicy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 500),
            st.integers(1, 1800),
        ), min_size=1, max_size=3,
    )  # fmt: skip
    rules = st.builds(
        ScalingRules, st.integers(0, 3600), policies, st.sampled_from(["Max", "Min", "Disabled"])
    )
    keda = (
        {"polling_s": draw(st.integers(1, 600)), "cooldown_s": draw(st.integers(0, 3600))}
        if to_zero
        else {}
    )
    return Autoscaler(
        tuple(signals),
        draw(st.integers(max(1, least), 50)),
        least,
        kind,
        draw(rules),
        draw(rules),
        draw(st.sampled_from([0.1, 0.0, 0.05, 0.125])),
        draw(st.sampled_from([5, 15, 30])),
        scrape_s,
        provision_s=draw(st.sampled_from([0.0, 40.0, 1 / 3])),
        queue_metric=draw(st.sampled_from(["inference_extension_flow_control_queue_size", "q"])),
        **keda,
    )


@given(autoscalers())
@settings(max_examples=200)
def test_what_is_written_is_read_back(found: Autoscaler) -> None:
    manifest = autoscaler_manifest(found, METADATA, "http://prometheus")
    (again,) = yaml.safe_load_all(to_yaml([manifest]))
    assert again == manifest
    assert read_autoscaler(again) == found


@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_the_exported_object_is_what_was_simulated(kind: str) -> None:
    scenario = Scenario(
        traffic={"trace": "azure-conv-2023:duration=300,rate=12"},
        fleet={
            "pools": [{"profile": PROFILE, "lifecycle": {"start_s": 60.0}}],
            "autoscaler": {
                "kind": kind,
                "signals": [{"metric": "requests", "target": 10.0}],
                "max_replicas": 4,
                "scale_up": {"stabilization_window_s": 0},
            },
        },
    )
    objects = list(yaml.safe_load_all(str(export_simulated(scenario, "kubernetes"))))
    assert [o["kind"] for o in objects[:2]] == ["Deployment", "Service"]
    assert objects[0]["spec"]["replicas"] == 1
    read = read_autoscaler(objects[2])
    assert scenario.fleet.autoscaler is not None
    assert read == scenario.fleet.autoscaler.autoscaler()
    # so that both simulate the same
    trace = load_trace("azure-conv-2023:duration=300,rate=12")
    pool = Scenario.from_dict(scenario.to_dict())
    from qsim.sim.run_scenario import pools_of

    a = simulate(trace, pools=pools_of(pool), autoscaler=read)
    b = simulate(trace, pools=pools_of(scenario), autoscaler=scenario.fleet.autoscaler.autoscaler())
    assert a.scaling == b.scaling
    assert a.scaling is not None
    assert a.scaling.pools[0].scale_ups
    # a server finishes its requests, as was simulated
    pod = objects[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 3600
    script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    compile(script, "preStop", "exec")


def test_an_edited_manifest_is_read_as_it_is() -> None:
    found = Autoscaler((Signal("requests", 20.0),), 8)
    manifest = autoscaler_manifest(found, METADATA, "")
    manifest["spec"]["maxReplicaCount"] = 5
    manifest["spec"]["triggers"][0]["metadata"]["threshold"] = "12500m"
    read = read_autoscaler(manifest)
    assert (read.max_replicas, read.signals[0].target) == (5, 12.5)
    manifest["spec"]["triggers"][0]["metadata"]["query"] = "sum(up)"
    with pytest.raises(ScenarioError, match=r"the query of vllm_num_requests is 'sum\(up\)'"):
        read_autoscaler(manifest)


@pytest.mark.parametrize("change", ["kind", "spec", "metric", "behavior", "tolerance"])
def test_other_manifests_are_refused(change: str) -> None:
    manifest: dict[str, Any] = autoscaler_manifest(
        Autoscaler((Signal("requests", 20.0),), 8, kind="hpa", tolerance=0.2), METADATA, ""
    )
    if change == "kind":
        manifest["kind"] = "Deployment"
    elif change == "spec":
        del manifest["spec"]["maxReplicas"]
    elif change == "metric":
        manifest["spec"]["metrics"][0]["pods"]["metric"]["name"] = "cpu"
    elif change == "behavior":
        del manifest["spec"]["behavior"]
    else:
        del manifest["spec"]["behavior"]["scaleUp"]["tolerance"]
    with pytest.raises(ScenarioError):
        read_autoscaler(manifest)


def test_zero_servers_are_woken_by_the_gateway() -> None:
    zero = Autoscaler((Signal("requests", 20.0),), 8, 0)
    trigger = autoscaler_manifest(zero, METADATA, "")["spec"]["triggers"][0]
    query = trigger["metadata"]["query"]
    assert "sum(inference_extension_flow_control_queue_size) or vector(0)" in query
    assert query.count("or vector(0)") == 3  # without a pod there are no values to add
    one = autoscaler_manifest(replace(zero, min_replicas=1), METADATA, "")["spec"]["triggers"][0]
    assert "inference_extension" not in one["metadata"]["query"]


@pytest.mark.parametrize("kind", ["keda", "hpa"])
@pytest.mark.parametrize("version", ["1.27", "1.34"])
def test_the_manifests_are_valid(kind: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    scenario = Scenario(
        fleet={
            "pools": [{"profile": PROFILE}],
            "autoscaler": {
                "kind": kind, "max_replicas": 4,
                "signals": [{"metric": m, "target": 1.0} for m in METRICS],
            },
        }
    )  # fmt: skip
    for manifest in manifests(servers_of(scenario), "none"):
        if manifest["kind"] != "ScaledObject":  # whose schema is KEDA's
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Autoscaler((Signal("requests", 1 / 3),), 2), "must be a multiple of 0.001"),
        (Autoscaler((Signal("requests", 1.0),), 2, tolerance=1 / 3), "tolerance is 0.33"),
        (Autoscaler((Signal("requests", 1.0),), 2, scrape_s=0), "no cluster sees the present"),
        (
            Autoscaler((Signal("requests", 1.0),), 2, scale_up=ScalingRules(0, ())),
            "policies of scaleUp is empty",
        ),
        (
            Autoscaler((Signal("requests", 1.0),), 2, scale_up=ScalingRules(math.pi)),
            "stabilization_window_s of scaleUp is 3.14",
        ),
    ],
)
def test_what_no_manifest_holds_is_refused(found: Autoscaler, text: str) -> None:
    with pytest.raises(ScenarioError, match=text):
        autoscaler_manifest(found, METADATA, "")


def test_the_command_simulates_and_exports(tmp_path) -> None:
    path = tmp_path / "k8s.yaml"
    result = CliRunner().invoke(
        main,
        [
            "simulate", "azure-conv-2023:duration=120,rate=12", "--profile", PROFILE,
            "--autoscale", "waiting=2,kv-usage=0.8,min=1,max=4,kind=hpa,down-window=120",
            "--start-s", "30", "--export", f"kubernetes={path}",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "autoscaler  1 to " in result.output
    *_, hpa = yaml.safe_load_all(path.read_text())
    read = read_autoscaler(hpa)
    assert [(s.metric, s.target) for s in read.signals] == [("waiting", 2.0), ("kv_usage", 0.8)]
    assert read.scale_down.stabilization_window_s == 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requests=20", "has no max; give max=SERVERS"),
        ("max=3", "has nothing to scale on; give one of requests, waiting, running, kv-usage, req"),
        ("kv_usge=20,max=3", "unknown key 'kv-usge'; did you mean kv-usage?"),
        ("kv-usage=1,kv_usage=2,max=3", "kv-usage is given twice"),
        ("requests=1,max=2,up-window=x", "up-window is 'x'; must be a whole number"),
        ("requests=20,max=3,mx=2", "unknown key 'mx'"),
        ("requests=20,max=3,max=2", "max is given twice"),
        ("requests=20,max=x", "max is 'x'; must be a whole number"),
        ("requests=,max=2", "is no KEY=VALUE pair"),
        ("requests=0,max=2", "target is 0.0"),
        ("requests=1,max=2,min=3", "min_replicas is 3; must be <= max_replicas 2"),
        ("requests=1,max=2,min=0,kind=hpa", "only KEDA scales to zero"),
        ("requests=1,max=2,kind=hpa,polling=5", "polling_s is 5; an hpa has none"),
        ("requests=1,max=2,kind=hpa,cooldown=5", "cooldown_s is 5; an hpa has none"),
        ("requests=1,max=2,kind=hpa,activation=3", "activation of requests is 3; an hpa has none"),
        ("requests=1,max=2,polling=5", "polling_s is 5 and min_replicas 1; KEDA looks at it for"),
        ("requests=1,max=2,min=2,cooldown=5", "cooldown_s is 5 and min_replicas 2; KEDA looks"),
        ("requests=1,max=2,activation=3", "activation of requests is 3 and min_replicas 1; KEDA"),
        ("requests=1e-5,max=2", "must be a multiple of 0.001"),
        ("requests=1,max=99999", "max_replicas is 99999"),
    ],
)
def test_a_bad_text_is_an_error_of_one_line(text: str, message: str) -> None:
    found = CliRunner().invoke(
        main, ["simulate", "azure-conv-2023:duration=10,rate=1", "--profile", PROFILE,
               "--autoscale", text],
    )  # fmt: skip
    assert found.exit_code == 2, found.output
    (line,) = [e for e in found.output.splitlines() if "error" in e.lower() or message in e]
    assert message in line
