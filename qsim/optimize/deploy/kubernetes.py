"""Kubernetes manifests of a pool of servers: Deployment, Service and an autoscaler.

The probes use vLLM's ``/health``. The startup probe gives a server :data:`STARTUP_FACTOR` times
the measured start, because that was measured with the weights at hand. An autoscaler never goes
below the fleet that was simulated; it adds servers once more requests wait per server than any
queue of the simulation held: the load is then outside of what was predicted. One that was simulated
is written as it was (:mod:`qsim.optimize.deploy.autoscaler`), and its servers finish their requests
before they stop.
"""

from __future__ import annotations

import math
from typing import Any

from qsim.catalog.versions import parse_version
from qsim.documents import to_yaml as yaml_text
from qsim.errors import ScenarioError
from qsim.optimize.deploy.autoscaler import autoscaler_manifest
from qsim.optimize.deploy.deployment import Pool, distinct
from qsim.optimize.deploy.vllm import real_router, serve_words
from qsim.sim.fleet.autoscaling import Autoscaler, ScalingPolicy, ScalingRules, Signal

AUTOSCALERS = ("hpa", "keda", "none")
#: a start may take so many times the measured one before the server is given up
STARTUP_FACTOR = 6.0

_PORT = 8000
_PROBE_S = 10
#: value of the label nvidia.com/gpu.product that NVIDIA's feature discovery gives a node
_PRODUCTS = {
    "h200_sxm": "NVIDIA-H200",
    "h100_sxm": "NVIDIA-H100-80GB-HBM3",
    "a100_sxm": "NVIDIA-A100-SXM4-80GB",
}
#: a server that is taken out of use has so long for its requests
_GRACE_S = 3600
_LAST_REQUEST = """\
import time, urllib.request
def left():
    text = urllib.request.urlopen("http://127.0.0.1:8000/metrics", timeout=5).read().decode()
    lines = [l for l in text.splitlines()
             if l.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
    return sum(float(l.rsplit(" ", 1)[1]) for l in lines)
time.sleep(5)
while left():
    time.sleep(1)
"""

Manifest = dict[str, Any]


def manifests(
    pools: Pool | list[Pool],
    autoscaler: str = "hpa",
    *,
    namespace: str | None = None,
    image: str | None = None,
    prometheus: str = "http://prometheus-server.monitoring.svc",
) -> list[Manifest]:
    """The objects to apply, in order.

    Parameters
    ----------
    pools : Pool or list of Pool
        Each becomes a Deployment, a Service and an autoscaler.
    autoscaler : {"hpa", "keda", "none"}
        ``hpa``: a HorizontalPodAutoscaler on the pods' metric ``vllm_num_requests_waiting``, which
        an adapter (prometheus-adapter) must serve; ``keda``: a ScaledObject that asks Prometheus
        itself. A pool that was simulated with an autoscaler gets that one.
    namespace : str, optional
        Where the objects go; left to ``kubectl`` unless given.
    image : str, optional
        ``vllm/vllm-openai`` of the profile's vLLM version unless given.
    prometheus : str
        Address for KEDA.

    Raises
    ------
    ScenarioError
        For an unknown autoscaler.
    """
    if autoscaler not in AUTOSCALERS:
        raise ScenarioError(
            f"autoscaler is {autoscaler!r}; must be one of {', '.join(AUTOSCALERS)}"
        )
    found: list[Manifest] = []
    for pool in distinct(pools if isinstance(pools, list) else [pools]):
        found += [_deployment(pool, image), _service(pool)]
        if pool.autoscaler is not None or autoscaler != "none":
            settings = pool.autoscaler or _of_plan(pool, autoscaler)
            found.append(autoscaler_manifest(settings, _metadata(pool), prometheus))
    for manifest in found:
        if namespace is not None:
            manifest["metadata"]["namespace"] = namespace
    return found


def to_yaml(objects: list[Manifest]) -> str:
    """The objects as one YAML stream for ``kubectl apply -f``."""
    return yaml_text(objects, several=True)


def _labels(pool: Pool) -> dict[str, str]:
    return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": pool.name}


def _metadata(pool: Pool) -> dict[str, Any]:
    return {
        "name": pool.name,
        "labels": {**_labels(pool), "app.kubernetes.io/managed-by": "qsim"},
        "annotations": {
            "qsim/profile": pool.profile,
            "qsim/simulated-router": pool.router,
            **({} if pool.weight is None else {"qsim/router-weight": f"{pool.weight:g}"}),
            **({"qsim/real-router": real} if (real := real_router(pool.router)) else {}),
        },
    }


def _probe(**limits: int) -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PROBE_S, **limits}


def _deployment(pool: Pool, image: str | None) -> Manifest:
    words = serve_words(pool, _PORT)
    gpus = {"nvidia.com/gpu": str(pool.tensor_parallel_size)}
    shm = f"{max(2, 4 * pool.tensor_parallel_size)}Gi"  # the workers of one server talk over it
    container = {
        "name": "vllm",
        "image": image or f"vllm/vllm-openai:{_tag(pool.vllm_version)}",
        "command": words[:2],
        "args": words[2:],
        "env": [
            {
                "name": "HF_TOKEN",
                "valueFrom": {
                    "secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}
                },
            }
        ],
        "ports": [{"name": "http", "containerPort": _PORT}],
        "resources": {"limits": gpus, "requests": dict(gpus)},
        "startupProbe": _probe(
            failureThreshold=math.ceil(STARTUP_FACTOR * pool.startup_s / _PROBE_S),
            timeoutSeconds=5,
        ),
        "readinessProbe": _probe(failureThreshold=2, timeoutSeconds=5),
        "livenessProbe": _probe(failureThreshold=6, timeoutSeconds=10),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": "/root/.cache"},
        ],
    }
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
            {"name": "cache", "emptyDir": {}},
        ],
    }
    if pool.autoscaler is not None:  # it drains, as was simulated
        spec["terminationGracePeriodSeconds"] = _GRACE_S
        container["lifecycle"] = {
            "preStop": {"exec": {"command": ["python3", "-c", _LAST_REQUEST]}}
        }
    product = _PRODUCTS.get(pool.gpu)
    if product is not None:
        spec["nodeSelector"] = {"nvidia.com/gpu.product": product}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(pool),
        "spec": {
            "replicas": pool.replicas,
            "selector": {"matchLabels": _labels(pool)},
            # there are no spare GPUs for a surge: one server at a time is replaced
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "minReadySeconds": _PROBE_S,
            "progressDeadlineSeconds": 2 * math.ceil(STARTUP_FACTOR * pool.startup_s),
            "template": {"metadata": {"labels": _labels(pool)}, "spec": spec},
        },
    }


def _tag(version: str) -> str:
    """The tag of vLLM's image: three numbers, whatever else a build's version says."""
    if not version:
        return "latest"
    return "v" + ".".join(map(str, parse_version(version)))


def _service(pool: Pool) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pool),
        "spec": {
            "selector": _labels(pool),
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def _of_plan(pool: Pool, kind: str) -> Autoscaler:
    """The autoscaler of a fleet that was simulated without one."""
    most = 2 * pool.replicas if pool.max_replicas is None else pool.max_replicas
    start_s = math.ceil(pool.startup_s)
    # a server that was just started takes no load yet: wait for it before adding another
    slowly = (ScalingPolicy("Pods", 1, min(max(1, start_s), 1800)),)
    calm_s = max(300, 3 * start_s)
    return Autoscaler(
        (Signal("waiting", max(1, pool.waiting or 0)),),
        max(most, pool.replicas),
        pool.replicas,
        kind,
        ScalingRules(0, slowly),
        ScalingRules(min(calm_s, 3600), slowly),
    )
