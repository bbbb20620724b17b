"""Settings of an autoscaler as Kubernetes has them: a HorizontalPodAutoscaler, or KEDA's.

A simulation runs them (:mod:`qsim.sim.fleet.horizontal`), and
:mod:`qsim.optimize.deploy.autoscaler` writes them as the manifest that does the same in a cluster.

Names and defaults are those of ``autoscaling/v2`` (HorizontalPodAutoscalerBehavior; Kubernetes'
documentation, "Horizontal Pod Autoscaling") and of ``keda.sh/v1alpha1`` (keda.sh/docs,
"ScaledObject specification"); metrics' names are those of vLLM's ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qsim.bounds import MAX_REPLICAS, shown
from qsim.checks import finite, whole
from qsim.errors import ScenarioError

#: who scales: a HorizontalPodAutoscaler by itself, or KEDA, which drives one
KINDS = ("keda", "hpa")
#: what may be scaled on, and what it is
METRICS = {
    "requests": "running and waiting requests",
    "waiting": "waiting requests",
    "running": "running requests",
    "kv_usage": "used share of the KV cache, 0 to 1",
    "request_rate": "requests per second that come to the gateway",
    "ttft": "mean time to the first token, s",
}
#: those that are counted over a window
RATES = ("request_rate", "ttft")
_LONGEST_S = 86_400


@dataclass(frozen=True)
class Signal:
    """One metric, and how much of it a server is to have.

    Attributes
    ----------
    metric : str
        One of :data:`METRICS`.
    target : float
        Per server; of ``ttft`` that of the pool, in seconds.
    window_s : int, optional
        Of ``request_rate`` and ``ttft`` the time over which they are counted (the range of
        PromQL's ``rate``), 60 s or four scrapes unless given; of the others that over which they
        are averaged, the last value unless given.
    activation : float
        KEDA's ``activationThreshold``: with no server, one starts as soon as it is above this.
    """

    metric: str
    target: float
    window_s: int | None = None
    activation: float = 0.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ScenarioError(
                f"metric of a signal is {shown(self.metric)}; must be one of: {', '.join(METRICS)}"
            )
        finite(f"target of {self.metric}", self.target, 0.0, 1e9, above=True)
        finite(f"activation of {self.metric}", self.activation, 0.0, 1e9)
        if self.window_s is not None:
            whole(f"window_s of {self.metric}", self.window_s, 1, _LONGEST_S)

    @property
    def counts_held(self) -> bool:
        """Whether requests that wait at the gateway are among what is counted."""
        return self.metric in ("requests", "waiting")

    def range_s(self, step_s: int) -> int:
        """The window, where the metric is read every ``step_s``; 0 for the last value."""
        if self.window_s is not None:
            return self.window_s
        return max(60, 4 * step_s) if self.metric in RATES else 0


@dataclass(frozen=True)
class ScalingPolicy:
    """How fast the number of servers may change: HPAScalingPolicy.

    Attributes
    ----------
    type : {"Pods", "Percent"}
    value : int
        So many servers, or so many percent of them.
    period_s : int
        Within this time (``periodSeconds``).
    """

    type: str
    value: int
    period_s: int

    def __post_init__(self) -> None:
        if self.type not in ("Pods", "Percent"):
            raise ScenarioError(
                f"type of a scaling policy is {shown(self.type)}; must be Pods or Percent"
            )
        whole("value of a scaling policy", self.value, 1, 1_000_000)
        whole("period_s of a scaling policy", self.period_s, 1, 1800)


@dataclass(frozen=True)
class ScalingRules:
    """One direction's HPAScalingRules.

    Attributes
    ----------
    stabilization_window_s : float
        Of what was wanted within this time the lowest (up) or highest (down) is done.
    policies : sequence of ScalingPolicy, optional
        Kubernetes' own unless given: up by 100% or 4 servers in 15 s, down by 100% in 15 s. An
        empty one is no limit, which no manifest can say.
    select_policy : {"Max", "Min", "Disabled"}
        Whether the policy that allows the most counts, that which allows the least, or no change
        is made at all.
    """

    stabilization_window_s: float
    policies: Sequence[ScalingPolicy] | None = None
    select_policy: str = "Max"

    def __post_init__(self) -> None:
        if self.select_policy not in ("Max", "Min", "Disabled"):
            raise ScenarioError(
                f"select_policy is {shown(self.select_policy)}; must be Max, Min or Disabled"
            )
        finite("stabilization_window_s", self.stabilization_window_s, 0.0, 3600.0)
        if self.policies is None:
            return
        object.__setattr__(self, "policies", tuple(self.policies))
        if not all(isinstance(p, ScalingPolicy) for p in self.policies):
            raise ScenarioError("policies of an autoscaler holds something that is no policy")


_UP = (ScalingPolicy("Percent", 100, 15), ScalingPolicy("Pods", 4, 15))
_DOWN = (ScalingPolicy("Percent", 100, 15),)
#: KEDA's defaults
_POLLING_S, _COOLDOWN_S = 30, 300


@dataclass(frozen=True)
class Autoscaler:
    """How many servers of a pool are on, as a function of what they tell of themselves.

    Attributes
    ----------
    signals : sequence of Signal
        The one that wants most servers decides.
    max_replicas, min_replicas : int
        Of every pool that is scaled. With ``min_replicas`` 0, which KEDA alone knows, requests
        wait at the gateway while there is no server.
    kind : {"keda", "hpa"}
        Whether metrics are sums that KEDA asks Prometheus for, or averages over pods.
    scale_up, scale_down : ScalingRules
        Kubernetes' defaults (up by 100% or 4 servers in 15 s; down to the most that was wanted in
        300 s) but for one: up to the least that was wanted in 60 s, where Kubernetes does it at
        once. The number of requests in a fleet under even load goes up and down by its square
        root; at once, each peak of it starts a server that goes again.
    tolerance : float
        Nothing changes while a metric is within this share of its target.
    sync_s : int
        Between two looks of the HPA (``--horizontal-pod-autoscaler-sync-period``).
    scrape_s : int
        Between two scrapes of Prometheus; whoever looks sees the last one before. 0 for the
        present, which no cluster gives.
    polling_s, cooldown_s : int
        KEDA's ``pollingInterval`` and ``cooldownPeriod``: how often it looks whether there is
        anything to do, and how long there must be nothing before the last server goes. Without
        effect, and refused, where ``min_replicas`` is not 0; so is ``activation`` of a signal.
    provision_s : float
        From the wish for a server until its machine is there; then it starts. It counts as
        starting, and is paid for.
    pools : sequence of str
        Names of the pools that are scaled; all, unless given.
    queue_metric, arrivals_metric : str
        What the gateway calls the requests that wait for a server, and those that have come: the
        names of Gateway API's inference extension unless given.
    """

    signals: Sequence[Signal]
    max_replicas: int
    min_replicas: int = 1
    kind: str = "keda"
    scale_up: ScalingRules = ScalingRules(60, _UP)
    scale_down: ScalingRules = ScalingRules(300, _DOWN)
    tolerance: float = 0.1
    sync_s: int = 15
    scrape_s: int = 15
    polling_s: int = _POLLING_S
    cooldown_s: int = _COOLDOWN_S
    provision_s: float = 0.0
    pools: Sequence[str] = ()
    queue_metric: str = "inference_extension_flow_control_queue_size"
    arrivals_metric: str = "inference_objective_request_total"

    def __post_init__(self) -> None:
        object.__setattr__(self, "signals", tuple(self.signals))
        object.__setattr__(self, "pools", tuple(self.pools))
        for name, policies in (("scale_up", _UP), ("scale_down", _DOWN)):
            rules = getattr(self, name)
            if not isinstance(rules, ScalingRules):
                raise ScenarioError(f"{name} is {shown(rules)}; must be a qsim.ScalingRules")
            if rules.policies is None:
                object.__setattr__(self, name, replace(rules, policies=policies))
        if not self.signals or not all(isinstance(s, Signal) for s in self.signals):
            raise ScenarioError(
                "signals of an autoscaler is empty; give what it scales on, such as requests with "
                "a target of 20 per server"
            )
        metrics = [s.metric for s in self.signals]
        twice = next((m for m in metrics if metrics.count(m) > 1), None)
        if twice is not None:
            raise ScenarioError(f"signals of an autoscaler has {twice} twice; once is enough")
        if self.kind not in KINDS:
            raise ScenarioError(
                f"kind of an autoscaler is {shown(self.kind)}; must be one of: {', '.join(KINDS)}"
            )
        whole("max_replicas", self.max_replicas, 1, MAX_REPLICAS)
        whole("min_replicas", self.min_replicas, 0, MAX_REPLICAS)
        if self.min_replicas > self.max_replicas:
            raise ScenarioError(
                f"min_replicas is {self.min_replicas}; must be <= max_replicas {self.max_replicas}"
            )
        if self.min_replicas == 0 and self.kind != "keda":
            raise ScenarioError(
                "min_replicas is 0; must be >= 1 for an hpa: only KEDA scales to zero (kind keda)"
            )
        finite("tolerance", self.tolerance, 0.0, 1.0)
        whole("sync_s", self.sync_s, 1, _LONGEST_S)
        whole("scrape_s", self.scrape_s, 0, _LONGEST_S)
        whole("polling_s", self.polling_s, 1, _LONGEST_S)
        whole("cooldown_s", self.cooldown_s, 0, _LONGEST_S)
        finite("provision_s", self.provision_s, 0.0, float(_LONGEST_S))
        self._check_windows()
        self._check_keda()

    def _check_windows(self) -> None:
        for signal in self.signals:
            window_s = signal.range_s(self.step_s)
            if signal.metric in RATES and window_s < 2 * self.step_s:
                raise ScenarioError(
                    f"window_s of {signal.metric} is {window_s}; must be >= {2 * self.step_s}: a "
                    "rate needs two scrapes"
                )
            if self.kind == "hpa" and signal.metric not in RATES and signal.window_s is not None:
                raise ScenarioError(
                    f"window_s of {signal.metric} is {signal.window_s}; an hpa takes the last "
                    "value of each pod: leave it out, or use kind keda"
                )

    def _check_keda(self) -> None:
        """Refuse what only KEDA has, and what it has for the last server alone."""
        if self.kind == "keda" and not self.min_replicas:
            return
        given: list[tuple[str, float, float]] = [
            ("polling_s", self.polling_s, _POLLING_S),
            ("cooldown_s", self.cooldown_s, _COOLDOWN_S),
            *((f"activation of {s.metric}", s.activation, 0.0) for s in self.signals),
        ]
        for name, value, default in given:
            if value == default:
                continue
            if self.kind == "keda":
                raise ScenarioError(
                    f"{name} is {value:g} and min_replicas {self.min_replicas}; KEDA looks at it "
                    "for the first and the last server only: leave it out, or give min_replicas 0 "
                    "(min=0)"
                )
            raise ScenarioError(
                f"{name} is {value:g}; an hpa has none, only KEDA looks for the first and the "
                "last server: leave it out, or use kind keda"
            )

    @property
    def step_s(self) -> int:
        """Between two values of a metric."""
        return self.scrape_s or self.sync_s

    def check_quantities(self) -> None:
        """Refuse targets that a manifest cannot hold.

        Raises
        ------
        ScenarioError
            For one that is no multiple of 0.001, as Kubernetes' quantities are.
        """
        quantities = [("tolerance", self.tolerance)]
        for s in self.signals:
            quantities += [(f"target of {s.metric}", s.target)]
            quantities += [(f"activation of {s.metric}", s.activation)]
        for name, value in quantities:
            if abs(value * 1000 - round(value * 1000)) > 1e-6:
                raise ScenarioError(
                    f"{name} is {value!r}; must be a multiple of 0.001: Kubernetes counts in "
                    "thousandths"
                )
