"""What has to be settled before a run: settings, and which requests a server would take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from qsim import __version__
from qsim.arrays import BoolArray, IntArray
from qsim.bounds import MAX_REPLICAS, MAX_REQUESTS, MAX_SEED, shown
from qsim.catalog.versions import parse_version
from qsim.checks import finite, whole
from qsim.errors import ScenarioError, TraceError
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import FrontEnd, Profile
from qsim.sim.engine.clock import MOST_S
from qsim.sim.engine.frontend import FREE
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.pool import Pool, ResolvedPool, resolve_pools
from qsim.sim.fleet.routers.router import check_router, check_weights
from qsim.sim.scheduler.config import QUEUE_LIMITS, EngineOptions
from qsim.sim.scheduler.server_memory import most_model_len
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.fleet.horizontal import FleetScaler

#: what is said of text prompts where a profile does not tell what the API server is busy with
TEXTS_UNTOLD = (
    "prompts count as token ids: the profile does not tell how long its API server tokenizes texts "
    "(profiles under vLLM 0.33 do)"
)


def text_notes(profiles: Iterable[Profile]) -> list[str]:
    """Of which profiles text prompts count as token ids; a sentence, or none."""
    untold = dict.fromkeys(p.id for p in profiles if p.frontend.api is None)
    return [f"{', '.join(untold)}: {TEXTS_UNTOLD}"] if untold else []


@dataclass(frozen=True)
class Setup:
    """A fleet as it is run: pools of equal servers behind one router."""

    pools: tuple[ResolvedPool, ...]
    router: str = "least-requests"
    seed: int = 0
    too_long: str = "error"
    frontend: bool = True
    concurrency: int | None = None
    client_timeout_s: float | None = None
    failures: Failures | None = None
    think_time_s: float | None = None
    #: prompts are texts, and not token ids
    text_prompts: bool = False
    #: fill one server after the other, with so many requests per weight, instead of the router
    pack: int = 0
    autoscaler: Autoscaler | None = None

    def scaler(self) -> FleetScaler | None:
        """What decides how many servers are on; None if all are for ever."""
        if self.autoscaler is None:
            return None
        from qsim.sim.fleet.horizontal import FleetScaler

        return FleetScaler(
            self.autoscaler,
            tuple(p.asked for p in self.pools),
            tuple(p.first is not None for p in self.pools),
        )

    def admission(self) -> Admission:
        """What takes its requests: those that every pool would take."""
        most = [most_model_len(p.profile, p.config) for p in self.pools]
        measured = [MeasuredRange.of(p.profile).request_context_tokens for p in self.pools]
        known = [m for m in measured if m is not None]
        return Admission(
            min(p.config.max_model_len for p in self.pools),
            self.too_long,
            min(most),
            min(known) if known else None,
            all(p.config.scheduling_policy == "fcfs" for p in self.pools),
        )

    @property
    def replicas(self) -> int:
        """Servers of the whole fleet."""
        return sum(p.replicas for p in self.pools)

    @property
    def vllm_version(self) -> str:
        """The newest release of its servers: that of the API server before several engines."""
        return max((p.config.vllm_version for p in self.pools), key=parse_version)

    def notes(self) -> list[str]:
        """What a reader should know of pools that differ."""
        versions = list(dict.fromkeys(p.config.vllm_version for p in self.pools))
        if self.router != "vllm" or len(versions) == 1:
            return []
        return [
            f"the pools run vLLM {' and '.join(versions)}; router vllm is that of "
            f"{self.vllm_version}: one API server does not drive engines of another release"
        ]

    def router_notes(self, trace: Trace) -> list[str]:
        """What the trace does not tell the router."""
        name = check_router(self.router).name
        if self.replicas == 1:
            return []
        if name == "session-affinity" and trace.sessions() is None:
            return [
                "router session-affinity: the trace has no sessions, so every request went to the "
                "least loaded server"
            ]
        if name == "kv-aware" and trace.hash_ids is None and trace.turns is None:
            return [
                "router kv-aware: the trace has no prefix ids, so every request went to the server "
                "with the fewest tokens to prefill and to hold"
            ]
        return []

    @property
    def pool_of(self) -> list[int]:
        """By server, the number of its pool."""
        return [k for k, p in enumerate(self.pools) for _ in range(p.replicas)]

    @property
    def frontends(self) -> list[FrontEnd]:
        """By pool, the times of the API server."""
        return [p.profile.frontend if self.frontend else FREE for p in self.pools]

    @property
    def gpus(self) -> int:
        """Of the whole fleet."""
        return sum(p.gpus for p in self.pools)

    def scenario(self, name: str, requests: int) -> dict[str, Any]:
        """What is run on a trace, under the names of the options."""
        first = self.pools[0]
        run: dict[str, Any] = {
            "router": self.router,
            "seed": self.seed,
            "too_long": self.too_long,
            "frontend": self.frontend,
        }
        for option in ("concurrency", "client_timeout_s"):
            if getattr(self, option) is not None:
                run[option] = getattr(self, option)
        if self.think_time_s:
            run["think_time_s"] = self.think_time_s
        if self.text_prompts:
            run["text_prompts"] = True
        if self.failures is not None:
            run["failures"] = asdict(self.failures)
        if self.autoscaler is not None:
            run["autoscaler"] = asdict(self.autoscaler)
        if len(self.pools) == 1:
            config = first.config
            fleet = {"profile": first.profile.id, "replicas": first.asked}
            settings = {n: getattr(config, n) for n in config.__dataclass_fields__}
        else:
            fleet = {"pools": [p.to_dict() for p in self.pools]}
            settings = {}
        return {
            "trace": name,
            "requests": requests,
            **fleet,
            **run,
            **settings,
            "qsim_version": __version__,
        }


class FleetArguments(TypedDict, total=False):
    """Keyword arguments that say which fleet is simulated, and how its clients behave.

    Attributes
    ----------
    replicas : int, optional
        Servers, each on ``tensor_parallel_size`` GPUs; >= 1, the default.
    pools : sequence of Pool, optional
        In the place of ``profile``, ``replicas`` and ``options``: pools of equal servers that
        differ from each other, behind one router.
    router : str
        How requests are spread: see :data:`qsim.sim.fleet.routers.router.ROUTERS`;
        ``least-requests`` by default.
    options : EngineOptions, optional
        vLLM settings that differ from the profile's.
    seed : int
        Of the router's random draws; 0 by default.
    too_long : {"error", "reject"}
        What to do with a prompt that leaves no room for a token within ``max_model_len``: raise
        (the default), or count it as failed as the server would (HTTP 400).
    frontend : bool
        Include the times of the API server before and after the engine (the default).
    concurrency : int, optional
        So many clients, each of which sends the trace's next request when its last one has ended,
        as ``vllm bench serve --max-concurrency`` does; the trace's arrivals mean nothing then.
    think_time_s : float, optional
        How long each of them waits after an answer, on average: exponentially distributed.
    client_timeout_s : float, optional
        How long a client waits for its whole answer, where the trace does not say it. Then it gives
        up, and the server aborts the request.
    text_prompts : bool
        Prompts are texts, which the API server tokenizes, and not token ids (the default). Servers
        whose profile does not tell how long that takes have them for token ids, which a note says.
    failures : Failures, optional
        Servers that fail.
    autoscaler : Autoscaler, optional
        Says how many servers are on; ``replicas`` are those at the beginning.
    """

    replicas: int | None
    pools: Sequence[Pool] | None
    router: str
    options: EngineOptions | None
    seed: int
    too_long: str
    frontend: bool
    concurrency: int | None
    think_time_s: float | None
    client_timeout_s: float | None
    text_prompts: bool
    failures: Failures | None
    autoscaler: Autoscaler | None


def resolve_fleet(profile: Profile | str | None = None, **asked: Unpack[FleetArguments]) -> Setup:
    """Check the arguments of a simulation.

    Raises
    ------
    ScenarioError
        If an option is not allowed, pools do not go together, or no server is given, or twice.
    ProfileError
        If a profile is unknown or malformed.
    """
    pools, replicas, options = asked.get("pools"), asked.get("replicas"), asked.get("options")
    check_pools(pools, profile=profile, replicas=replicas, options=options)
    if pools is None:
        assert profile is not None
        pools = [Pool(profile, 1 if replicas is None else replicas, options or EngineOptions())]
    rest: dict[str, Any] = {k: v for k, v in asked.items() if k not in _SERVERS}
    setup = Setup(resolve_pools(pools), **rest)
    found, think_time_s = setup.pools, setup.think_time_s
    check_weights(setup.router, [p.weight for p in found])
    whole("seed", setup.seed, 0, MAX_SEED)
    if setup.router == "vllm":
        _check_engines(found)
    if setup.concurrency is not None:
        whole("concurrency", setup.concurrency, 1, MAX_REQUESTS)
    if think_time_s is not None:
        finite("think_time_s", think_time_s, 0.0, _MOST_THINK_S)
        if setup.concurrency is None:
            raise ScenarioError(
                f"think_time_s is {think_time_s:g}, and there are no clients that think: give "
                "concurrency, too; sessions of a trace have delays of their own"
            )
    if setup.client_timeout_s is not None:
        finite("client_timeout_s", setup.client_timeout_s, 0.0, MOST_S, above=True)
    if not isinstance(setup.text_prompts, bool):
        raise ScenarioError(f"text_prompts is {shown(setup.text_prompts)}; must be true or false")
    if setup.failures is not None and not isinstance(setup.failures, Failures):
        raise ScenarioError(f"failures is {shown(setup.failures)}; must be a qsim.Failures")
    if setup.autoscaler is not None:
        setup = replace(setup, pools=_scaled(found, setup.autoscaler, setup.router))
    if setup.failures is not None:
        setup.failures.listed(setup.pools)
    return setup


#: arguments that say which servers there are
_SERVERS = ("pools", "replicas", "options")
#: a day: clients that think for longer are no closed loop
_MOST_THINK_S = 86_400.0


def _scaled(
    pools: tuple[ResolvedPool, ...], autoscaler: Autoscaler, router: str
) -> tuple[ResolvedPool, ...]:
    """The pools with as many servers as there may be of those that are scaled."""
    if not isinstance(autoscaler, Autoscaler):
        raise ScenarioError(f"autoscaler is {shown(autoscaler)}; must be a qsim.Autoscaler")
    if router == "vllm":
        raise ScenarioError(
            "router is 'vllm' and an autoscaler is given; vLLM's own balancer drives engines "
            "behind one API server, which no autoscaler adds to: take another router"
        )
    names = [p.name for p in pools]
    for name in autoscaler.pools:
        if name not in names:
            raise ScenarioError(
                f"pools of the autoscaler has {shown(name)}; must be of: {', '.join(names)}"
            )
    own = [p for p in pools if not autoscaler.pools or p.name in autoscaler.pools]
    if len(own) > 1 and any(s.metric == "request_rate" for s in autoscaler.signals):
        raise ScenarioError(
            f"request_rate is that of the whole gateway, and the autoscaler scales {len(own)} "
            "pools: take another signal, or name one pool in pools of the autoscaler"
        )
    most = autoscaler.max_replicas
    for pool in own:
        if pool.replicas > most:
            raise ScenarioError(
                f"replicas of {pool.name} is {pool.replicas}; must be <= max_replicas {most} of "
                "the autoscaler"
            )
    servers = sum(most if p in own else p.replicas for p in pools)
    whole("max_replicas of all pools", servers, 1, MAX_REPLICAS)
    least = max(1, autoscaler.min_replicas)
    return tuple(
        replace(p, replicas=most, first=max(p.replicas, least)) if p in own else p for p in pools
    )


def _check_engines(pools: Sequence[ResolvedPool]) -> None:
    """Refuse engines that cannot share the limits of one API server (vLLM's own balancer)."""
    for name in QUEUE_LIMITS:
        values = list(dict.fromkeys(getattr(p.config, name) for p in pools))
        if len(values) > 1:
            raise ScenarioError(
                f"{name} is {values[0]} in {pools[0].name} and {values[1]} in another pool; with "
                "router vllm all servers are engines behind one API server, which has one: give "
                "every pool the same, or take another router"
            )


def check_pools(pools: Sequence[Pool] | None, **single: object) -> None:
    """Refuse pools beside arguments of a single one (None: not given), or neither.

    Raises
    ------
    ScenarioError
    """
    if pools is None:
        if single["profile"] is None:
            raise ScenarioError("neither profile nor pools is given; a fleet needs one of them")
        return
    for name, value in single.items():
        if value is not None:
            raise ScenarioError(
                f"{name} and pools are both given; each pool has its own {name}: give it there"
            )


@dataclass(eq=False)
class Admission:
    """Takes the requests that fit ``max_model_len``, whole or in parts, and counts the others."""

    #: ``max_model_len``, which a prompt must be shorter than
    limit: int
    #: {"error", "reject"}: what to do with a longer one
    too_long: str
    #: the longest ``max_model_len`` that model and KV cache allow
    most: int | None = None
    #: prompt and output of the longest request that was measured
    measured_tokens: int | None = None
    #: whether no server looks at priorities
    fcfs: bool = False
    #: requests whose output was cut at ``max_model_len``
    truncated: int = 0
    #: requests whose prompt leaves no room for a token
    rejected: int = 0
    #: requests that are longer than any that was measured
    longer: int = 0
    _seen: int = 0
    #: trace, number and prompt of the first that is too long
    _first: tuple[str, int, int] | None = None
    _priorities: int = 0

    def __post_init__(self) -> None:
        if self.too_long not in ("error", "reject"):
            raise ScenarioError(f"too_long is {self.too_long!r}; must be 'error' or 'reject'")

    def admit(self, trace: Trace) -> tuple[Trace | None, IntArray, BoolArray]:
        """The admissible requests (None without any), their output tokens, and which they are.

        Raises
        ------
        TraceError
            If a prompt is too long and such prompts are an error.
        """
        admissible = trace.prompt_tokens < self.limit
        run: Trace | None = trace
        if not admissible.all():
            i = int(np.argmax(~admissible))
            if self._first is None:
                self._first = trace.name, self._seen + i, int(trace.prompt_tokens[i])
            self.rejected += int((~admissible).sum())
            if self.too_long == "error":
                self._seen += len(trace)
                raise self.too_long_error()
            run = trace.take(np.flatnonzero(admissible)) if admissible.any() else None
        self._seen += len(trace)
        if self.fcfs and trace.priority is not None:
            self._priorities += int((trace.priority != 0).sum())
        if run is None:
            return None, np.empty(0, np.int64), admissible
        room = self.limit - run.prompt_tokens
        self.truncated += int((run.output_tokens > room).sum())
        output = np.minimum(run.output_tokens, room)
        if self.measured_tokens is not None:
            self.longer += int((run.prompt_tokens + output > self.measured_tokens).sum())
        return run, output, admissible

    def too_long_error(self) -> TraceError:
        """What to raise if such prompts are an error, or there are no others."""
        assert self._first is not None
        name, i, prompt = self._first
        return TraceError(
            f"{name}: prompt_tokens of request {i} is {prompt} "
            f"({self.rejected} of {self._seen} requests are too long); must be < max_model_len "
            f"{self.limit}: {self._advice(prompt)}"
        )

    def _advice(self, prompt: int) -> str:
        """What to do about a prompt that is too long; nothing that cannot help."""
        most = self.most
        if most is not None and prompt >= most:
            longer = f"model and KV cache hold at most {most} tokens"
        elif most is None:
            longer = "raise --max-model-len"
        else:
            longer = f"raise --max-model-len, to at most {most}"
        if self.too_long == "reject":
            return f"no request is left to simulate; {longer}"
        joint = ";" if most is not None and prompt >= most else ", or"
        return (
            f"{longer}{joint} give --too-long reject to count such requests as failed, as the "
            "server would"
        )

    def notes(self) -> list[str]:
        """What a reader should know."""
        notes = []
        if self._priorities:
            notes.append(
                f"{self._priorities} requests have a priority, which no server looks at: "
                "--scheduling-policy priority does"
            )
        if self.rejected:
            notes.append(
                f"{self.rejected} requests were rejected: prompts of max_model_len or more tokens"
            )
        if self.truncated:
            notes.append(
                f"{self.truncated} outputs were cut where prompt and output reach max_model_len "
                f"{self.limit}"
            )
        return notes
