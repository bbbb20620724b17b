"""Kubernetes manifests of a pool of servers: Deployment, Service and an autoscaler.

The probes use vLLM's ``/health``. The startup probe gives a server :data:`STARTUP_FACTOR` times
the measured start, because that was measured with the weights at hand. An autoscaler never goes
below the fleet that was simulated; it adds servers once more requests wait per server than any
queue of the simulation held: the load is then outside of what was predicted.
"""

from __future__ import annotations

import math
from typing import Any

from qsim.catalog.versions import parse_version
from qsim.documents import to_yaml as yaml_text
from qsim.errors import ScenarioError
from qsim.optimize.deploy.deployment import Pool, distinct
from qsim.optimize.deploy.routers import real_router
from qsim.optimize.deploy.vllm import serve_words

__all__ = ["AUTOSCALERS", "STARTUP_FACTOR", "manifests", "to_yaml"]

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
_METRIC = "vllm:num_requests_waiting"

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
        itself.
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
        if autoscaler == "hpa":
            found.append(_hpa(pool))
        elif autoscaler == "keda":
            found.append(_scaled_object(pool, prometheus))
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


def _range(pool: Pool) -> tuple[int, int]:
    most = 2 * pool.replicas if pool.max_replicas is None else pool.max_replicas
    return pool.replicas, max(most, pool.replicas)


def _threshold(pool: Pool) -> int:
    return max(1, pool.waiting or 0)


def _behavior(pool: Pool) -> dict[str, Any]:
    start_s = math.ceil(pool.startup_s)
    return {
        # a server that was just started takes no load yet: wait for it before adding another
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": start_s}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": max(300, 3 * start_s),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": start_s}],
        },
    }


def _target(pool: Pool) -> dict[str, str]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": pool.name}


def _hpa(pool: Pool) -> Manifest:
    least, most = _range(pool)
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(pool),
        "spec": {
            "scaleTargetRef": _target(pool),
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        # a colon is no part of a name in the metrics API
                        "metric": {"name": _METRIC.replace(":", "_")},
                        "target": {"type": "AverageValue", "averageValue": str(_threshold(pool))},
                    },
                }
            ],
            "behavior": _behavior(pool),
        },
    }


def _scaled_object(pool: Pool, prometheus: str) -> Manifest:
    least, most = _range(pool)
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(pool),
        "spec": {
            "scaleTargetRef": _target(pool),
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "pollingInterval": 15,
            "cooldownPeriod": max(300, 3 * math.ceil(pool.startup_s)),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(pool)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": prometheus,
                        "query": f'sum({_METRIC}{{pod=~"{pool.name}-[0-9a-z]+-[0-9a-z]+"}})',
                        "threshold": str(_threshold(pool)),
                    },
                }
            ],
        },
    }
