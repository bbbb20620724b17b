from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from qsim.errors import ScenarioError
from qsim.optimize.deploy.deployment import STARTUP_S, Pool
from qsim.optimize.deploy.kubernetes import STARTUP_FACTOR, manifests, to_yaml
from qsim.optimize.deploy.vllm import serve_words
from qsim.sim.scheduler.config import EngineConfig

POOL = Pool(
    "h200_sxm/llama-3.1-8b/fp8-w8a8/tp2", "h200_sxm", "llama-3.1-8b", "fp8-w8a8",
    EngineConfig(max_num_seqs=256), 3, 2, vllm_version="0.24.0", waiting=7,
)  # fmt: skip
OTHER = replace(POOL, method="bf16", tensor_parallel_size=1, gpu="b300_sxm", waiting=None)


def by_kind(**options: Any) -> dict[str, dict[str, Any]]:
    return {m["kind"]: m for m in manifests(POOL, **options)}


@pytest.mark.parametrize("autoscaler", ["hpa", "none"])
@pytest.mark.parametrize("version", ["1.27", "1.34"])
def test_every_manifest_validates_against_the_schema(autoscaler: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    text = to_yaml(manifests([POOL, OTHER], autoscaler, namespace="llm"))
    objects = list(yaml.safe_load_all(text))
    assert len(objects) == (6 if autoscaler == "hpa" else 4)
    for manifest in objects:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_find_a_fault() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    broken = by_kind()["Deployment"]
    broken["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.34", strict=True)


def test_the_container_runs_the_command_that_was_simulated_on_its_gpus() -> None:
    deployment = by_kind()["Deployment"]
    assert deployment["spec"]["replicas"] == 3
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] + container["args"] == serve_words(POOL)
    assert container["image"] == "vllm/vllm-openai:v0.24.0"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    shm = next(v for v in pod["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"


def test_probes_wait_for_the_measured_start() -> None:
    (container,) = by_kind()["Deployment"]["spec"]["template"]["spec"]["containers"]
    start = container["startupProbe"]
    assert start["failureThreshold"] * start["periodSeconds"] >= STARTUP_FACTOR * STARTUP_S
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": "http"}
    deadline = by_kind()["Deployment"]["spec"]["progressDeadlineSeconds"]
    assert deadline > start["failureThreshold"] * start["periodSeconds"]


def test_labels_select_the_pods_and_the_names_are_allowed() -> None:
    found = by_kind()
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= pods.items()
    assert found["Service"]["spec"]["selector"].items() <= pods.items()
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    long = replace(POOL, model="a" * 70)
    for pool in (POOL, OTHER, long):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pool.name)
    assert len({p.name for p in (POOL, OTHER)}) == 2


@pytest.mark.parametrize("autoscaler", ["hpa", "keda"])
def test_autoscalers_never_go_below_the_simulated_fleet(autoscaler: str) -> None:
    kind = "HorizontalPodAutoscaler" if autoscaler == "hpa" else "ScaledObject"
    spec = by_kind(autoscaler=autoscaler)[kind]["spec"]
    assert spec["scaleTargetRef"]["name"] == POOL.name
    keys = ("minReplicas", "maxReplicas") if autoscaler == "hpa" else (
        "minReplicaCount", "maxReplicaCount")  # fmt: skip
    assert [spec[k] for k in keys] == [3, 6]
    limited = manifests(replace(POOL, max_replicas=1), autoscaler)[-1]["spec"]
    assert limited[keys[1]] == 3


def test_keda_asks_for_the_waiting_requests_of_these_pods_only() -> None:
    (trigger,) = by_kind(autoscaler="keda")["ScaledObject"]["spec"]["triggers"]
    assert all(isinstance(v, str) for v in trigger["metadata"].values())
    assert trigger["metadata"]["threshold"] == "7"
    query = trigger["metadata"]["query"]
    pattern = re.search(r'pod=~"([^"]+)"', query)
    assert query.startswith("sum(vllm:num_requests_waiting{")
    assert pattern is not None
    assert re.fullmatch(pattern[1], f"{POOL.name}-7c9f8d6b5-x2x4z")
    assert not re.fullmatch(pattern[1], f"{POOL.name}-canary-7c9f8d6b5-x2x4z")


def test_hpa_scales_out_beyond_the_queue_that_was_simulated() -> None:
    for pool, waiting in ((POOL, "7"), (OTHER, "1")):
        hpa = manifests(pool)[-1]["spec"]
        assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == waiting
        policy = hpa["behavior"]["scaleUp"]["policies"][0]
        assert policy["periodSeconds"] >= math.ceil(STARTUP_S)


def test_an_unknown_autoscaler() -> None:
    with pytest.raises(ScenarioError, match="autoscaler is 'vpa'; must be one of hpa, keda"):
        manifests(POOL, "vpa")
