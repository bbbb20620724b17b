"""The sections that every command reads: traffic, fleet, accounts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from qsim.bounds import (
    MAX_BATCHED_TOKENS,
    MAX_BLOCKS,
    MAX_MODEL_LEN,
    MAX_REPLICAS,
    MAX_REQUESTS,
    MAX_SEQS,
    MAX_TENSOR_PARALLEL,
    Items,
    Number,
    Text,
    Whole,
)
from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.scenario.fields import (
    Amount,
    Factor,
    File,
    Seconds,
    Word,
    empty_dict,
    empty_list,
    one_or_a_file,
    size,
    text_or_number,
)
from qsim.scenario.section import Checked, Field, Section
from qsim.sim.fleet.autoscaling import METRICS, Autoscaler, ScalingPolicy, ScalingRules, Signal
from qsim.sim.fleet.failures import Failure, Failures
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.routers.spec import router_text
from qsim.sim.scheduler.config import MAX_KV_BYTES, EngineOptions
from qsim.traces.reshape import Reshaping
from qsim.traces.trace import Trace

_DAY_S = 86_400
ProfileName = Annotated[
    Any,
    one_or_a_file(
        lambda v: isinstance(v, Profile), "the id of a shipped profile, or a file, as a text"
    ),
]
_TraceName = Annotated[
    Any, one_or_a_file(lambda v: isinstance(v, Trace), "a file or a preset, as a text")
]


class Traffic(Section):
    """What arrives."""

    trace: _TraceName | None = Field(
        default=None, description="File or preset, such as azure-conv-2023:duration=600,rate=20."
    )
    format: Word | None = Field(default=None, description="Recognised by content unless given.")
    columns: Word | None = Field(
        default=None,
        description="What a table's columns are: ROLE=NAME[UNIT], separated by commas.",
    )
    sort: bool = Field(
        default=False, description="Sort by arrival time instead of refusing the trace."
    )
    start: Seconds | None = Field(
        default=None, description="Leave out requests before this time, s."
    )
    end: Seconds | None = Field(
        default=None, description="Leave out requests at or after this time, s."
    )
    sample: Seconds | None = Field(
        default=None, description="Keep this share of the requests (of the sessions)."
    )
    scale_prompt: Seconds | None = Field(
        default=None, description="Make prompts so many times as long."
    )
    scale_output: Seconds | None = Field(
        default=None, description="Make outputs so many times as long."
    )
    shared_prefix: Annotated[int, size(-(1 << 64), 1 << 64)] | None = Field(
        default=None, description="Tokens at the beginning of every prompt that are the same."
    )
    speed: Seconds | None = Field(
        default=None, description="Let requests arrive so many times as fast, after start and end."
    )
    head: Annotated[int, size(-(1 << 64), 1 << 64)] | None = Field(
        default=None, description="Keep the first so many requests."
    )
    merge: Annotated[list[_TraceName], Items(1000)] = Field(
        default_factory=empty_list, description="Further traces, which start with the first."
    )
    peak_hour: bool = Field(default=False, description="Only the busiest hour, by requests.")
    growth: Seconds = Field(
        default=1.0, description="Let requests arrive so many times as fast, after everything else."
    )
    concurrency: Annotated[int, Whole(1, MAX_REQUESTS)] | None = Field(
        default=None,
        description="simulate: so many clients, each of which sends the next request when its last "
        "one has ended; arrival times then mean nothing.",
    )
    think_time_s: Amount | None = Field(
        default=None,
        description="With concurrency: mean seconds, exponentially distributed, that a client "
        "waits after an answer.",
    )
    client_timeout_s: Factor | None = Field(
        default=None,
        description="simulate: a client gives up after so many seconds without its whole answer.",
    )
    text_prompts: bool = Field(
        default=False,
        description="Prompts are texts, which the API server tokenizes, and not token ids.",
    )
    too_long: Literal["error", "reject"] = Field(
        default="error",
        description="Prompts of max_model_len or more: an error, or counted as failed as the "
        "server would.",
    )
    stream: bool | None = Field(
        default=None,
        description="simulate: take the trace part by part in bounded memory; by default when "
        "it is large.",
    )

    def reshaping(self) -> Reshaping:
        """What is made of each trace that is read.

        Raises
        ------
        TraceError
            If a value is not allowed.
        """
        return self.as_a(Reshaping)


class Engine(Section):
    """vLLM's settings under vLLM's names; one that is left out is the profile's."""

    max_num_seqs: Annotated[int, size(1, MAX_SEQS)] | None = None
    max_num_batched_tokens: Annotated[int, size(1, MAX_BATCHED_TOKENS)] | None = None
    max_model_len: Annotated[int, size(2, MAX_MODEL_LEN)] | None = None
    enable_prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    long_prefill_token_threshold: Annotated[int, size(0, MAX_MODEL_LEN)] | None = None
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    num_gpu_blocks_override: Annotated[int, size(2, MAX_BLOCKS)] | None = None
    kv_cache_memory_bytes: Annotated[int, size(1, MAX_KV_BYTES)] | None = None
    max_num_active_seqs: Annotated[int, size(1, MAX_SEQS)] | None = None
    long_prefill_token_threshold_adaptive: bool | None = None
    max_num_queued_reqs: Annotated[int, size(0, 1 << 53)] | None = None
    max_num_queued_tokens: Annotated[int, size(0, 1 << 53)] | None = None
    vllm_version: Word | None = Field(
        default=None,
        description="Release of vLLM whose rules and defaults hold, in quotes: '0.33'.",
    )

    def options(self) -> EngineOptions:
        """As the simulator takes them."""
        return self.as_a(EngineOptions)


class Lifetimes(Section):
    """Times and powers of a server that starts, stops or sleeps."""

    start_s: Amount = Field(default=105.0, description="From a server's start until it answers.")
    start_w: Amount | None = Field(
        default=None, description="Power meanwhile; idle power unless given."
    )
    stop_s: Amount = Field(default=5.0, description="From its last token until it is off.")
    wake_s: Amount = Field(default=6.0, description="From asleep (sleep mode, level 1) to on.")
    sleep_w: Amount | None = Field(
        default=None, description="Power asleep; idle power unless given."
    )
    off_w: Amount = Field(default=0.0, description="Power of a GPU without a server.")
    off_billed: bool = Field(
        default=False, description="Whether a GPU without a server is paid for."
    )

    def lifecycle(self) -> Lifecycle:
        """As the simulator takes them."""
        return self.as_a(Lifecycle)


class PoolSection(Section):
    """Equal servers: a profile, or the model, method and GPU that a shipped one is chosen by."""

    name: Word | None = Field(
        default=None, description="What results and --set call it; its profile's id unless given."
    )
    profile: ProfileName | None = Field(
        default=None, description="Id of a shipped profile, or a file."
    )
    model: Word | None = None
    method: Word | None = None
    gpu: Word | None = None
    tensor_parallel_size: Annotated[int, Whole(1, MAX_TENSOR_PARALLEL)] | None = None
    replicas: Annotated[int, Whole(1, MAX_REPLICAS)] = 1
    weight: Factor = Field(
        default=1.0, description="How many requests a server gets beside one of weight 1."
    )
    sleeps: bool = Field(
        default=False, description="A server taken out of use sleeps instead of stopping."
    )
    engine: Engine = Field(default_factory=Engine)
    lifecycle: Lifetimes = Field(default_factory=Lifetimes)

    def check(self) -> None:
        """There is one way to say which profile."""
        parts = [p for p in PARTS if getattr(self, p) is not None]
        if self.profile is not None and parts:
            raise ValueError(f"gives both profile and {parts[0]}; give the one or the other")

    @property
    def label(self) -> str | None:
        """Its name, or else its profile's."""
        if self.name is not None or not isinstance(self.profile, str):
            return self.name
        return self.profile


#: what a shipped profile's id is made of, as fields of a pool
PARTS = ("model", "method", "gpu", "tensor_parallel_size")


class FailureSection(Section):
    """One server fails once."""

    at_s: Amount = Field(description="When, on the trace's clock.")
    for_s: Amount = Field(description="How long it is under repair; then it starts.")
    server: Annotated[int, Whole(0, MAX_REPLICAS)] = Field(
        default=0, description="Its number in its pool, from 0."
    )
    pool: Annotated[int, Whole(0, 64)] | Word = Field(
        default=0, description="Name or number of the pool."
    )


class FailuresSection(Section):
    """How servers fail, and what their clients do."""

    events: Annotated[list[FailureSection], Items(10_000)] = Field(default_factory=empty_list)
    mtbf_s: Factor | None = Field(
        default=None, description="Mean time that a server is on before it fails at random."
    )
    repair_s: Amount = Field(default=0.0, description="Mean time to repair of those.")
    retries: Annotated[int, Whole(0, 1000)] = Field(
        default=2, description="How often a client sends a lost request again."
    )
    retry_after_s: Amount = Field(default=0.5, description="How long after it was lost.")

    def failures(self) -> Failures:
        """As the simulator takes them."""
        return self.as_a(Failures, events=tuple(e.as_a(Failure) for e in self.events))


def _router(value: Any) -> str:
    """As text, however it is said."""
    text = router_text(value) if isinstance(value, dict) else value
    if not isinstance(text, str) or not Text(longest=1000, shortest=1).allows(text):
        raise ValueError
    return text


_Router = Annotated[
    Any,
    Checked(
        "a router's name, with parameters as prefix-affinity:cache_threshold=0.3 or "
        "{name: prefix-affinity, cache_threshold: 0.3}",
        _router,
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                    "additionalProperties": {"type": "number"},
                },
            ]
        },
    ),
]


class SignalSection(Section):
    """A metric that an autoscaler looks at, and how much of it a server is to have."""

    metric: Literal["requests", "waiting", "running", "kv_usage", "request_rate", "ttft"] = Field(
        description="; ".join(f"{name}: {what}" for name, what in METRICS.items()) + "."
    )
    target: Factor = Field(description="Per server; of ttft that of the pool.")
    window_s: Annotated[int, Whole(1, _DAY_S)] | None = Field(
        default=None,
        description="What request_rate and ttft are counted over, 60 unless given; what the others "
        "are averaged over, the last value unless given.",
    )
    activation: Amount = Field(
        default=0.0, description="keda: with no server, one starts above this."
    )


class ScalingPolicySection(Section):
    """How fast the number of servers may change."""

    type: Literal["Pods", "Percent"]
    value: Annotated[int, Whole(1, 1_000_000)]
    period_s: Annotated[int, Whole(1, 1800)]


class ScaleUpSection(Section):
    """When and how fast servers are added."""

    stabilization_window_s: Annotated[int, Whole(0, 3600)] = Field(
        default=60, description="Of what was wanted within this time, the least is done."
    )
    policies: Annotated[list[ScalingPolicySection], Items(100)] = Field(
        default_factory=lambda: [
            ScalingPolicySection(type="Percent", value=100, period_s=15),
            ScalingPolicySection(type="Pods", value=4, period_s=15),
        ]
    )
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"


class ScaleDownSection(Section):
    """When and how fast servers are taken away."""

    stabilization_window_s: Annotated[int, Whole(0, 3600)] = Field(
        default=300, description="Of what was wanted within this time, the most is done."
    )
    policies: Annotated[list[ScalingPolicySection], Items(100)] = Field(
        default_factory=lambda: [ScalingPolicySection(type="Percent", value=100, period_s=15)]
    )
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"


class AutoscalerSection(Section):
    """How many servers of a pool are on: Kubernetes' HPA by itself, or driven by KEDA."""

    signals: Annotated[list[SignalSection], Items(10)] = Field(
        description="The one that wants most servers decides."
    )
    max_replicas: Annotated[int, Whole(1, MAX_REPLICAS)]
    min_replicas: Annotated[int, Whole(0, MAX_REPLICAS)] = Field(
        default=1, description="keda may have 0: requests then wait at the gateway."
    )
    kind: Literal["keda", "hpa"] = "keda"
    scale_up: ScaleUpSection = Field(default_factory=ScaleUpSection)
    scale_down: ScaleDownSection = Field(default_factory=ScaleDownSection)
    tolerance: Annotated[float, Number(0.0, 1.0)] = Field(
        default=0.1, description="Nothing changes while a metric is so near to its target."
    )
    sync_s: Annotated[int, Whole(1, _DAY_S)] = Field(
        default=15, description="Between two looks of the HPA."
    )
    scrape_s: Annotated[int, Whole(0, _DAY_S)] = Field(
        default=15, description="Between two scrapes of Prometheus; 0: it sees the present."
    )
    polling_s: Annotated[int, Whole(1, _DAY_S)] = Field(
        default=30, description="keda: between two looks whether there is anything to do."
    )
    cooldown_s: Annotated[int, Whole(0, _DAY_S)] = Field(
        default=300, description="keda: how long there is nothing before the last server goes."
    )
    provision_s: Annotated[float, Number(0.0, float(_DAY_S))] = Field(
        default=0.0, description="Until a server's machine is there; then it starts."
    )
    pools: Annotated[list[Word], Items(64)] = Field(
        default_factory=list, description="Names of the pools that are scaled; all unless given."
    )
    queue_metric: Word = Field(
        default="inference_extension_flow_control_queue_size",
        description="The gateway's metric of requests that wait for a server.",
    )
    arrivals_metric: Word = Field(
        default="inference_objective_request_total",
        description="The gateway's counter of requests that have come.",
    )

    def autoscaler(self) -> Autoscaler:
        """As the simulator takes it.

        Raises
        ------
        ScenarioError
            If values do not go together, or a target is no multiple of 0.001.
        """

        def rules(section: ScaleUpSection | ScaleDownSection) -> ScalingRules:
            if not section.policies:
                raise ScenarioError(
                    "policies of the autoscaler is empty; Kubernetes needs one: leave it out for "
                    "the default, or give select_policy: Disabled for no change"
                )
            policies = tuple(p.as_a(ScalingPolicy) for p in section.policies)
            return section.as_a(ScalingRules, policies=policies)

        found = self.as_a(
            Autoscaler,
            signals=tuple(s.as_a(Signal) for s in self.signals),
            scale_up=rules(self.scale_up),
            scale_down=rules(self.scale_down),
        )
        found.check_quantities()
        return found


class Fleet(Section):
    """Pools of servers behind one router."""

    pools: Annotated[list[PoolSection], Items(64)] = Field(default_factory=empty_list)
    router: _Router = Field(
        default="least-requests",
        description="Which server a request goes to: NAME, NAME:PARAMETER=VALUE,..., or name and "
        "parameters as fields.",
    )
    failures: FailuresSection | None = Field(
        default=None, description="simulate: servers that fail."
    )
    autoscaler: AutoscalerSection | None = Field(
        default=None, description="simulate: says how many servers are on."
    )


def _tasks(value: Any) -> Any:
    text = Text(longest=10_000)
    if isinstance(value, str) and text.allows(value):
        return value
    known = isinstance(value, dict) and len(value) <= 1000
    if known and all(isinstance(k, str) and text.allows(k) and is_number(value[k]) for k in value):
        return value
    raise ValueError


class Accounts(Section):
    """What money, energy and quality are counted with."""

    prices: Annotated[dict[Word, Annotated[float, Number(-1e308, 1e308)]], Items(1000)] = Field(
        default_factory=empty_dict, description="USD per GPU and hour, by GPU."
    )
    price_list: (
        Annotated[Any, one_or_a_file(lambda v: isinstance(v, dict), "a CSV file, as a text")] | None
    ) = Field(default=None, description="CSV file of gpu and usd_per_hour; prices goes first.")
    provider: Word = Field(
        default="specialty",
        description="Whose prices the shipped table gives: hyperscaler, specialty, longtail.",
    )
    region: (
        Annotated[
            Any,
            text_or_number("a country, a cloud region, world, or a number of gCO2e per kWh"),
        ]
        | None
    ) = Field(default=None, description="Grid that the energy comes from.")
    carbon_series: File | None = Field(
        default=None, description="schedule: CSV file of the grid's intensity by the hour."
    )
    pue: Factor | None = Field(
        default=None, description="Energy of the whole site over that of its IT; 1 unless given."
    )
    tasks: (
        Annotated[
            Any,
            Checked(
                "tasks with shares, such as gsm8k:0.3,mmlu:0.7 or {gsm8k: 0.3, mmlu: 0.7}",
                _tasks,
                {"type": ["string", "object"], "additionalProperties": {"type": "number"}},
            ),
        ]
        | None
    ) = Field(default=None, description="Tasks that quality is told for; a usual mix.")
