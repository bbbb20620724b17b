"""An autoscaler as the manifest that does in a cluster what a simulation did, and back.

A HorizontalPodAutoscaler (``autoscaling/v2``) or a ScaledObject (``keda.sh/v1alpha1``). What the
cluster decides for all of its objects is written as annotations: how often Prometheus scrapes, how
often the HPA looks, how long a machine takes to be there; and, for an HPA, the queries that an
adapter (prometheus-adapter) must serve under the metrics' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.sim.fleet.autoscaling import RATES, Autoscaler, ScalingPolicy, ScalingRules, Signal

#: of the objects that say how many servers there are
KINDS = ("HorizontalPodAutoscaler", "ScaledObject")

Manifest = dict[str, Any]

#: vLLM's metrics of a pod, by signal
_OF_PODS = {
    "requests": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "waiting": ("vllm:num_requests_waiting",),
    "running": ("vllm:num_requests_running",),
    "kv_usage": ("vllm:kv_cache_usage_perc",),
}
#: names for the metrics API, in which a colon has no place
_NAMES = {
    "requests": "vllm_num_requests",
    "waiting": "vllm_num_requests_waiting",
    "running": "vllm_num_requests_running",
    "kv_usage": "vllm_kv_cache_usage_perc",
    "request_rate": "request_rate",
    "ttft": "vllm_mean_time_to_first_token_seconds",
}
_SIGNALS = {name: signal for signal, name in _NAMES.items()}
_TTFT = "vllm:time_to_first_token_seconds"
_TOLERANCE = 0.1  # of the HPA, where a manifest gives none
_ANNOTATIONS = {
    "sync_s": "qsim/hpa-sync-period-seconds",
    "scrape_s": "qsim/prometheus-scrape-interval-seconds",
    "provision_s": "qsim/provision-seconds",
}
_QUERY = "qsim/query."
_QUEUE, _ARRIVALS = "qsim/gateway-queue-metric", "qsim/gateway-arrivals-metric"


def autoscaler_manifest(settings: Autoscaler, metadata: Manifest, prometheus: str) -> Manifest:
    """The object that scales the Deployment of a name as was simulated.

    ``metadata`` has the Deployment's ``name``, and ``annotations``; ``prometheus`` is the address
    for KEDA.

    Raises
    ------
    ScenarioError
        For settings that no manifest holds: targets that are no multiples of 0.001, rules without
        policies, or metrics that are always of the present (``scrape_s`` 0).
    """
    settings.check_quantities()
    if settings.scrape_s == 0:
        raise ScenarioError(
            "scrape_s of the autoscaler is 0, and no cluster sees the present: give the scrape "
            "interval of its Prometheus"
        )
    name = metadata["name"]
    annotations = {
        **metadata.get("annotations", {}),
        **{
            key: repr(getattr(settings, field)).removesuffix(".0")
            for field, key in _ANNOTATIONS.items()
        },
        _QUEUE: settings.queue_metric,
        _ARRIVALS: settings.arrivals_metric,
    }
    queries = {s.metric: _query(settings, s, name) for s in settings.signals}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    if settings.kind == "keda":
        return {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {**metadata, "annotations": annotations},
            "spec": {
                "scaleTargetRef": target,
                "minReplicaCount": settings.min_replicas,
                "maxReplicaCount": settings.max_replicas,
                **_to_zero(settings),
                "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(settings)}},
                "triggers": [_trigger(s, queries[s.metric], prometheus) for s in settings.signals],
            },
        }
    annotations |= {_QUERY + _NAMES[metric]: query for metric, query in queries.items()}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {**metadata, "annotations": annotations},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": settings.min_replicas,
            "maxReplicas": settings.max_replicas,
            "metrics": [_metric(s) for s in settings.signals],
            "behavior": _behavior(settings),
        },
    }


def _to_zero(settings: Autoscaler) -> Manifest:
    """What KEDA looks at where there may be no server."""
    if settings.min_replicas:
        return {}
    return {"pollingInterval": settings.polling_s, "cooldownPeriod": settings.cooldown_s}


def _query(settings: Autoscaler, signal: Signal, name: str) -> str:
    """What Prometheus is asked; of an HPA's pods what the adapter gives of each."""
    pods = f'{{pod=~"{name}-[0-9a-z]+-[0-9a-z]+"}}'
    window_s = signal.range_s(settings.step_s)
    if signal.metric == "request_rate":
        return f"sum(rate({settings.arrivals_metric}[{window_s}s])) or vector(0)"
    if signal.metric == "ttft":
        total, count = (
            f"sum(rate({_TTFT}_{part}{pods}[{window_s}s]))" for part in ("sum", "count")
        )
        return f"({total} / ({count} > 0)) or vector(0)"
    metrics = _OF_PODS[signal.metric]
    if settings.kind == "hpa":
        return " + ".join(f"sum by (pod) ({m}{pods})" for m in metrics)
    parts = [f"sum({m}{pods})" for m in metrics]
    if settings.min_replicas == 0:  # without a pod there is no such metric
        parts = [f"({part} or vector(0))" for part in parts]
        if signal.counts_held:
            parts.append(f"(sum({settings.queue_metric}) or vector(0))")
    query = " + ".join(parts)
    return f"avg_over_time(({query})[{window_s}s:{settings.step_s}s])" if window_s else query


def _trigger(signal: Signal, query: str, prometheus: str) -> Manifest:
    trigger: Manifest = {
        "type": "prometheus",
        "name": _NAMES[signal.metric],
        "metricType": "Value" if signal.metric == "ttft" else "AverageValue",
        "metadata": {
            "serverAddress": prometheus,
            "query": query,
            "threshold": _number(signal.target),
        },
    }
    if signal.activation:
        trigger["metadata"]["activationThreshold"] = _number(signal.activation)
    return trigger


def _metric(signal: Signal) -> Manifest:
    metric = {"name": _NAMES[signal.metric]}
    quantity = _number(signal.target)
    if signal.metric not in RATES:
        target = {"type": "AverageValue", "averageValue": quantity}
        return {"type": "Pods", "pods": {"metric": metric, "target": target}}
    kind = "Value" if signal.metric == "ttft" else "AverageValue"
    target = {"type": kind, kind[0].lower() + kind[1:]: quantity}
    return {"type": "External", "external": {"metric": metric, "target": target}}


def _behavior(settings: Autoscaler) -> Manifest:
    found: Manifest = {}
    for key, rules in (("scaleUp", settings.scale_up), ("scaleDown", settings.scale_down)):
        if not rules.policies:
            raise ScenarioError(f"policies of {key} is empty, and Kubernetes needs one: give one")
        if rules.stabilization_window_s % 1:
            raise ScenarioError(
                f"stabilization_window_s of {key} is {rules.stabilization_window_s!r}; Kubernetes "
                "takes whole seconds"
            )
        found[key] = {
            "stabilizationWindowSeconds": round(rules.stabilization_window_s),
            "selectPolicy": rules.select_policy,
            "policies": [
                {"type": p.type, "value": p.value, "periodSeconds": p.period_s}
                for p in rules.policies
            ],
        }
        if settings.tolerance != _TOLERANCE:  # since Kubernetes 1.33, HPAConfigurableTolerance
            found[key]["tolerance"] = _number(settings.tolerance)
    return found


def _number(value: float) -> str:
    """In the decimal form of a Kubernetes quantity."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------------------------- and back


def read_autoscaler(manifest: Manifest) -> Autoscaler:
    """What :func:`autoscaler_manifest` wrote, or somebody changed since.

    Raises
    ------
    ScenarioError
        If it is no such manifest, or has a metric or a query that is not simulated.
    """
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind not in KINDS:
        raise ScenarioError(
            f"kind is {shown(kind)}; must be HorizontalPodAutoscaler or ScaledObject"
        )
    try:
        found = _read(manifest, kind == "ScaledObject")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise ScenarioError(
            f"the {kind} is not of the form that qsim writes ({type(e).__name__}: {e})"
        ) from None
    written = _queries_of(autoscaler_manifest(found, {"name": manifest["metadata"]["name"]}, ""))
    for name, query in _queries_of(manifest).items():
        if query != written.get(name):
            raise ScenarioError(
                f"the query of {name} is {shown(query, 200)}; only what qsim writes is simulated, "
                f"here {shown(written.get(name), 200)}"
            )
    return found


def _read(manifest: Manifest, keda: bool) -> Autoscaler:
    spec, annotations = manifest["spec"], manifest["metadata"].get("annotations", {})
    signals = []
    for entry in spec["triggers" if keda else "metrics"]:
        if keda:
            name, values = entry["name"], entry["metadata"]
            target, activation = values["threshold"], values.get("activationThreshold", "0")
            query = values["query"]
        else:
            own = entry["pods" if entry["type"] == "Pods" else "external"]
            name, values = own["metric"]["name"], own["target"]
            target = values["averageValue" if values["type"] == "AverageValue" else "value"]
            activation, query = "0", annotations.get(_QUERY + name, "")
        window = re.search(r"\[(\d+)s[:\]]", query)
        signals.append(
            Signal(
                _SIGNALS[name],
                _quantity(target),
                int(window.group(1)) if window else None,
                _quantity(activation),
            )
        )
    advanced = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    behavior = (advanced if keda else spec)["behavior"]
    tolerances = {behavior[key].get("tolerance", _TOLERANCE) for key in ("scaleUp", "scaleDown")}
    if len(tolerances) > 1:
        raise ScenarioError("tolerance differs between scaleUp and scaleDown; give both the same")
    read: dict[str, Callable[[str], Any]] = {"sync_s": int, "scrape_s": int, "provision_s": float}
    given = {k: of(annotations[_ANNOTATIONS[k]]) for k, of in read.items()
             if _ANNOTATIONS[k] in annotations}  # fmt: skip
    for field, key in (("queue_metric", _QUEUE), ("arrivals_metric", _ARRIVALS)):
        if key in annotations:
            given[field] = annotations[key]
    least = spec.get("minReplicaCount", 0) if keda else spec.get("minReplicas", 1)
    if keda and not least:
        given["polling_s"] = spec.get("pollingInterval", 30)
        given["cooldown_s"] = spec.get("cooldownPeriod", 300)
    elif keda:  # which KEDA does not look at where there always is a server
        signals = [replace(s, activation=0.0) for s in signals]
    found = Autoscaler(
        tuple(signals),
        spec["maxReplicaCount" if keda else "maxReplicas"],
        least,
        "keda" if keda else "hpa",
        _rules(behavior["scaleUp"]),
        _rules(behavior["scaleDown"]),
        _quantity(tolerances.pop()),
        **given,
    )
    return replace(found, signals=tuple(_default_window(found, s) for s in signals))


def _default_window(settings: Autoscaler, signal: Signal) -> Signal:
    """The signal with a window that is the default one left out."""
    without = replace(signal, window_s=None)
    same = without.range_s(settings.step_s) == signal.range_s(settings.step_s)
    return without if same else signal


def _rules(rules: Manifest) -> ScalingRules:
    return ScalingRules(
        rules["stabilizationWindowSeconds"],
        tuple(ScalingPolicy(p["type"], p["value"], p["periodSeconds"]) for p in rules["policies"]),
        rules.get("selectPolicy", "Max"),
    )


def _quantity(text: str | float) -> float:
    """A Kubernetes quantity: ``20``, ``0.8`` or ``800m``."""
    word = str(text)
    return float(word[:-1]) / 1000 if word.endswith("m") else float(word)


def _queries_of(manifest: Manifest) -> dict[str, str]:
    if manifest["kind"] == "ScaledObject":
        return {t["name"]: t["metadata"]["query"] for t in manifest["spec"]["triggers"]}
    annotations = manifest["metadata"].get("annotations", {})
    return {
        key.removeprefix(_QUERY): query
        for key, query in annotations.items()
        if key.startswith(_QUERY)
    }
