"""The loads that identify a server's latency and power, and those that state the error.

``phases`` is a generator: it yields one load after another and receives the speed that was
observed so far, from which it sizes the next. Each load answers a question of the fit:

* ``ladder``, ``ctx1k``, ``ctx8k``: decode steps of every batch size, with short, middle and long
  contexts. One burst of requests whose outputs end at different times makes the batch walk down
  the sizes. The prefill of the latter two runs at the power cap: many prompts per step in
  ``ctx1k``, one long prompt in chunks in ``ctx8k``.
* ``pre``: single prompts of sizes just below and above the tile edges, on an idle server.
* ``over*``: the same step sizes as prompts over running decodes.
* ``cap*``: the same kinds of step for some seconds without a pause, so that the clock falls.
* ``mix80``: Poisson arrivals at about 80% of the capacity.
* ``val*``: held out of the fit.
* ``clients*``: held out too; a closed loop of so many clients, each of whom waits for its answer.

``phases(only_holdout=True)`` leaves out all that only a fit needs.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.calibrate.measure.speed import Speed

#: decode batch sizes, including one above the largest CUDA graph
LEVELS = (576, 512, 384, 256, 192, 128, 96, 64, 48, 40, 32, 24, 16, 8, 4, 2, 1)
#: step sizes around the tile edges of 128 and 256 rows, and small ones
# fmt: off
SIZES: tuple[int, ...] = (
    16, 24, 40, 64, 96, 128, 136, 200, 256, 264, 320, 392, 512, 520, 640, 776, 900, 1024, 1030,
    1160, 1300, 1540, 1800, 2048, 2100, 2600, 3100, 4096, 5000, 8192,
)
# fmt: on
GAP_S = 0.6  # between loads, so that a load starts cold

# fmt: off
# Quantiles of the Azure LLM inference traces of 2023 (Azure/AzurePublicDataset, CC-BY 4.0)
_PERCENT: tuple[float, ...] = (
    0, 1, 2.5, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 97.5,
    99, 99.7, 100,
)
_CONV_PROMPT: tuple[int, ...] = (
    2, 29, 120, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189,
    1315, 1876, 2734, 4083, 4092, 4142, 5277, 14050,
)
_CONV_OUTPUT: tuple[int, ...] = (
    7, 16, 28, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424,
    451, 522, 601, 674, 1000,
)
_CODE_PROMPT: tuple[int, ...] = (
    3, 17, 44, 75, 147, 232, 385, 578, 770, 938, 1075, 1261, 1469, 1690, 1909, 2163, 2433, 2744,
    3192, 3920, 5187, 7303, 7435, 7436, 7436, 7437,
)
_CODE_OUTPUT: tuple[int, ...] = (
    6, 6, 6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 29, 39, 55, 90, 145, 251, 511,
    1899,
)
# fmt: on

Stream = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """One load. ``streams`` is what ``client.run_load`` sends; none for idling ``idle_s``."""

    label: str
    what: str
    load: str
    use: str
    streams: tuple[Stream, ...] = ()
    idle_s: float = 0.0
    expected_s: float = 0.0
    #: of a closed loop, which is replayed as one
    clients: int | None = None

    @property
    def tokens(self) -> int:
        """Prompt and output tokens in all."""
        return sum(sum(s["prompt"]) + sum(s["output"]) for s in self.streams)


@dataclass(frozen=True)
class Limits:
    """What the server can hold."""

    kv_tokens: int
    max_model_len: int = 32768
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192


@dataclass(frozen=True)
class HoldoutTrace:
    """Requests of a real trace: arrivals in s and lengths in tokens.

    It is replayed at ``load`` times the server's capacity; where that is None, the last trace at
    1.2 times, each other one at 0.65 times.
    """

    name: str
    arrival_s: Sequence[float]
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    load: float | None = None


@dataclass
class _Plan:
    budget_s: float
    limits: Limits
    speed: Speed
    rng: np.random.Generator

    def ms(self, share: float) -> float:
        """A share of the budget, in ms."""
        return 1e3 * share * self.budget_s


def phases(
    speed: Speed,
    limits: Limits,
    budget_s: float,
    seed: int = 0,
    holdout: Sequence[HoldoutTrace] = (),
    only_holdout: bool = False,
    clients: Sequence[int] = (),
) -> Generator[Phase, Speed | None, None]:
    """All loads of one server, which may take ``budget_s`` together: 150 s is a full calibration of
    an 8B model.

    ``speed`` is an estimate: send a better one into the generator after each load. ``holdout`` is
    what is replayed; by default lengths drawn like those of the Azure traces of 2023. A single
    trace without a load of its own is replayed twice, at moderate load and at overload. With
    ``only_holdout`` there are only these, and before them what it takes to know the server's
    capacity: enough to check a profile, too little to fit one. ``clients`` are closed loops of so
    many clients, which come last and take a tenth of ``budget_s`` each, beside it.
    """
    plan = _Plan(budget_s, limits, speed, np.random.default_rng(seed))
    makers = [_warm, _idle, _ladder, _pre, _context_1k, _over, _context_8k, _caps, _mix]
    for make in [_warm, _idle, _ladder, _context_1k] if only_holdout else makers:
        for phase in make(plan):
            seen = yield _within(phase, limits.max_model_len)
            plan.speed = seen or plan.speed
    for label, load, share, trace in _held_out(holdout, 0.6 if only_holdout else 0.25):
        seen = yield _holdout(plan, label, load, share * budget_s, trace)
        plan.speed = seen or plan.speed
    for number in clients:
        seen = yield _within(_clients(plan, number), limits.max_model_len)
        plan.speed = seen or plan.speed


#: held-out loads as multiples of the capacity
MODERATE, OVERLOAD = 0.65, 1.2
#: of the time for both; overload takes longer than it is given, until its queue is empty
_FOR_MODERATE = 0.68
#: a source of lengths: prompt and output quantiles, shape of the gaps between arrivals, name
_Lengths = tuple[Sequence[int], Sequence[int], float, str]
_CONV: _Lengths = (_CONV_PROMPT, _CONV_OUTPUT, 1.0,
                   "lengths as in the Azure conversation trace, Poisson arrivals,")  # fmt: skip
_CODE: _Lengths = (_CODE_PROMPT, _CODE_OUTPUT, 0.4,
                   "lengths as in the Azure code trace, bursty arrivals,")  # fmt: skip


def _held_out(
    traces: Sequence[HoldoutTrace], share: float
) -> list[tuple[str, float, float, HoldoutTrace | _Lengths]]:
    """Each held-out load: label, load, share of the budget, and what is sent."""
    if len(traces) == 1 and traces[0].load is None:
        traces = [*traces, *traces]
    if not traces or (len(traces) == 2 and all(t.load is None for t in traces)):
        first, last = traces or (_CONV, _CODE)
        return [
            ("val_moderate", MODERATE, _FOR_MODERATE * share, first),
            ("val_overload", OVERLOAD, (1 - _FOR_MODERATE) * share, last),
        ]
    usual = [MODERATE] * (len(traces) - 1) + [OVERLOAD]
    loads = [u if t.load is None else t.load for t, u in zip(traces, usual, strict=True)]
    return [
        (f"val{i}_{load * 100:.0f}", load, share / len(traces), trace)
        for i, (load, trace) in enumerate(zip(loads, traces, strict=True), 1)
    ]


def _within(phase: Phase, max_model_len: int) -> Phase:
    """The phase with its lengths cut to what the server takes."""
    streams = []
    for s in phase.streams:
        prompt, output = _cut(s["prompt"], s["output"], max_model_len)
        streams.append({**s, "prompt": prompt.tolist(), "output": output.tolist()})
    return replace(phase, streams=tuple(streams))


def _cut(
    prompt: Sequence[int] | np.ndarray, output: Sequence[int] | np.ndarray, max_model_len: int
) -> tuple[np.ndarray, np.ndarray]:
    outputs = np.minimum(np.asarray(output, dtype=int), max_model_len // 2)
    return np.minimum(np.asarray(prompt, dtype=int), max_model_len - 8 - outputs), outputs


def total_s(plan: Sequence[Phase]) -> float:
    """How long a list of loads should take, with the gaps between them."""
    return sum(p.expected_s + GAP_S for p in plan)


def _burst(prompt: Sequence[int], output: Sequence[int]) -> Stream:
    return {"at_s": [0.0] * len(prompt), "prompt": list(prompt), "output": list(output)}


def _warm(plan: _Plan) -> list[Phase]:
    sizes = [8192, 4096, 2048, 1024, 600, 300, 100, 40]
    one = {"concurrency": 1, "prompt": sizes, "output": [6] * len(sizes)}
    two = _burst([512] * 48, [24] * 48)
    tokens = sum(sizes) + 48 * 512
    seconds = 1.5 + plan.speed.prefill_ms(tokens) / 1e3
    what = "warm-up: single prompts of 40-8192 tokens and a burst of 48 x 512"
    return [Phase("warm", what, "burst", "skip", (one, two), expected_s=seconds)]


def _idle(plan: _Plan) -> list[Phase]:
    seconds = max(1.5, min(3.0, 0.02 * plan.budget_s))
    return [Phase("idle", "no requests", "idle", "fit", idle_s=seconds, expected_s=seconds)]


def _staircase(
    plan: _Plan, levels: Sequence[int], steps: int, prompts: Sequence[int]
) -> tuple[Stream, float]:
    """A burst of ``levels[0]`` requests whose outputs end so that the batch walks down ``levels``.

    The requests reach the engine over some time (front end and prefill); each gets as many tokens
    more as it decodes before the last one joins. Returns the stream and its duration in ms.
    """
    count, speed = levels[0], plan.speed
    outputs = []
    for i, level in enumerate(levels):
        below = levels[i + 1] if i + 1 < len(levels) else 0
        outputs += [steps * (i + 1)] * (level - below)
    lead_ms, leads = 0.0, []
    for prompt in reversed(prompts):
        leads.append(lead_ms)
        lead_ms += max(0.4, speed.prefill_ms(prompt))
    # while others are in prefill, one step takes about as long as a full budget of tokens
    step_ms = max(
        speed.decode_ms(count / 2),
        min(lead_ms, speed.prefill_ms(plan.limits.max_num_batched_tokens, prompts[0]))
        if speed.prefill_ms(prompts[-1]) > 0.4
        else 0.0,
    )
    extra = [math.ceil(x / step_ms) for x in reversed(leads)]
    total_ms = lead_ms
    for level in levels:
        context = level * (float(np.mean(prompts[-level:])) + steps * len(levels) / 2)
        total_ms += steps * speed.decode_ms(level, context)
    lengths = [o + e for o, e in zip(outputs, extra, strict=True)]
    return _burst(prompts, lengths), total_ms


def _tokens_of(stream: Stream) -> int:
    """Tokens of a burst when none of it has ended."""
    return sum(stream["prompt"]) + sum(stream["output"])


def _levels(plan: _Plan, top: int, prompt: int, steps: int) -> list[int]:
    """The batch sizes up to ``top`` that the server can hold."""
    usable = 0.85 * plan.limits.kv_tokens
    result = []
    for level in LEVELS:
        need = level * (prompt + steps * (LEVELS.index(level) + 2))
        if level <= min(top, plan.limits.max_num_seqs) and need <= usable:
            result.append(level)
    return result or [1]


def _ladder(plan: _Plan) -> list[Phase]:
    prompt = 64
    levels = _levels(plan, LEVELS[0], prompt, 60)
    per_step_ms = sum(plan.speed.decode_ms(x, 300.0 * x) for x in levels)
    steps = int(np.clip(plan.ms(0.065) / per_step_ms, 16, 60))
    while True:
        stream, ms = _staircase(plan, levels, steps, [prompt] * levels[0])
        # those who join early decode until the last one has, which takes long on a slow server
        if _tokens_of(stream) <= 0.95 * plan.limits.kv_tokens or len(levels) == 1:
            break
        levels = levels[1:]
    what = f"{levels[0]} requests at once, 64 in; outputs end in steps of {steps} tokens"
    return [Phase("ladder", what, "burst", "fit", (stream,), expected_s=0.4 + ms / 1e3)]


def _context_1k(plan: _Plan) -> list[Phase]:
    budget_ms = plan.ms(0.10)
    kv_tokens = plan.limits.kv_tokens
    tokens = min(0.75 * kv_tokens, 0.62 * budget_ms / plan.speed.prefill_ms(1, 1024))
    most = 512 if tokens >= 230_000 else 256 if tokens >= 90_000 else 128
    for top in LEVELS:
        if top > min(most, plan.limits.max_num_seqs):
            continue
        full = (top // 2) * 256 + (top - top // 2) * 1024 if top == 512 else top * 1024
        factor = min(1.0, tokens / full)
        long = max(64, int(1024 * factor))
        short = max(32, int(256 * factor)) if top == 512 else long
        levels = [x for x in LEVELS if min(24, top) <= x <= top]
        per_step_ms = sum(plan.speed.decode_ms(x, 1.2 * long * x) for x in levels)
        steps = int(np.clip(0.38 * budget_ms / per_step_ms, 12, 50))
        prompts = [short] * (top // 2) + [long] * (top - top // 2)
        stream, ms = _staircase(plan, levels, steps, prompts)
        if _tokens_of(stream) <= 0.95 * kv_tokens:
            break  # else a smaller batch: a preemption would compute prompts again
    what = f"{top} requests at once, {short} and {long} in; outputs end in steps of {steps} tokens"
    return [Phase("ctx1k", what, "burst", "fit", (stream,), expected_s=0.2 + ms / 1e3)]


def _context_8k(plan: _Plan) -> list[Phase]:
    budget_ms = plan.ms(0.09)
    prompt = min(8000, plan.limits.max_model_len - 1200)
    each_ms = plan.speed.prefill_ms(prompt)
    count = int(min(0.7 * budget_ms / each_ms, 0.8 * plan.limits.kv_tokens / (prompt + 600), 32))
    levels = [x for x in LEVELS if x <= min(max(2, count), plan.limits.max_num_seqs)]
    per_step_ms = sum(plan.speed.decode_ms(x, 1.05 * prompt * x) for x in levels)
    steps = int(np.clip(0.3 * budget_ms / per_step_ms, 20, 60))
    stream, ms = _staircase(plan, levels, steps, [prompt] * levels[0])
    what = f"{levels[0]} requests at once, {prompt} in; outputs end in steps of {steps} tokens"
    return [Phase("ctx8k", what, "burst", "fit", (stream,), expected_s=0.2 + ms / 1e3)]


def _pre(plan: _Plan) -> list[Phase]:
    longest = plan.limits.max_model_len - 8
    long = [x for x in (16384, 24000) if x <= longest]
    sizes = [x for x in SIZES if x <= longest]
    once_ms = sum(plan.speed.prefill_ms(x) + plan.speed.round_trip_ms + 45 for x in sizes)
    long_ms = sum(plan.speed.prefill_ms(x) + 60 for x in long)
    repeats = int(np.clip((plan.ms(0.06) - long_ms) / once_ms, 1, 3))
    order: list[int] = []
    for _ in range(repeats):
        order += [int(x) for x in plan.rng.permutation(sizes)]
    order += long
    stream = {"concurrency": 1, "gap_s": 0.03, "prompt": order, "output": [1] * len(order)}
    what = f"single prompts of {sizes[0]}-{order[-1]} tokens, one after another, 1 out"
    seconds = (repeats * once_ms + long_ms) / 1e3
    return [Phase("pre", what, "rows", "fit", (stream,), expected_s=seconds)]


def _over(plan: _Plan) -> list[Phase]:
    result: list[Phase] = []
    left_ms = plan.ms(0.10)
    gap_ms = 12.0
    for rows in (40, 8, 120, 250):
        sizes = [x - rows for x in SIZES if x - rows >= 8 and x <= 5000 + rows]
        step_ms = plan.speed.decode_ms(rows, 300.0 * rows)
        cycle_ms = gap_ms + plan.speed.round_trip_ms + 2 * step_ms
        once_ms = sum(plan.speed.prefill_ms(x) + cycle_ms for x in sizes)
        if rows >= plan.limits.max_num_seqs or rows * 600 > 0.5 * plan.limits.kv_tokens:
            continue
        if result and once_ms > left_ms:
            continue
        left_ms -= once_ms
        outputs = int(1.15 * len(sizes) * (cycle_ms / step_ms + 1)) + 20
        stream = {
            "concurrency": 1,
            "gap_s": gap_ms / 1e3,
            "delay_s": 0.05 + 0.001 * rows,
            "prompt": [int(x) for x in plan.rng.permutation(sizes)],
            "output": [1] * len(sizes),
        }
        background = _burst([128] * rows, [outputs] * rows)
        what = f"single prompts over {rows} running decodes, steps of {sizes[0] + rows}-5000 tokens"
        result.append(
            Phase(
                f"over{rows}",
                what,
                "rows",
                "fit",
                (background, stream),
                expected_s=0.3 + 1.1 * once_ms / 1e3,
            )
        )
    return result


def _caps(plan: _Plan) -> list[Phase]:
    """Steps of one kind back to back: (label, decodes, prompt sizes, prompts in flight)."""
    result = []
    seconds = float(np.clip(0.024 * plan.budget_s, 1.5, 4.0))
    for label, rows, low, high, flying in (
        ("cap300", 64, 180, 440, 4),
        ("cap1100", 48, 1000, 1250, 3),
        ("cap3k", 48, 2100, 4000, 3),
        ("cap8x1k", 0, 1024, 1025, 32),
    ):
        rows = min(rows, max(0, plan.limits.max_num_seqs - flying))
        mean = (low + high) / 2
        prompt_ms = plan.speed.prefill_ms(mean)
        step_ms = prompt_ms + (plan.speed.decode_ms(rows) if rows else 0.0)
        count = int(1.5e3 * seconds / prompt_ms) + 2 * flying
        lengths = [int(x) for x in plan.rng.integers(low, high, size=count)]
        stream = {
            "concurrency": flying,
            "duration_s": seconds,
            "delay_s": 0.1 if rows else 0.0,
            "prompt": lengths,
            "output": [1] * count,
        }
        outputs = int(1e3 * seconds / step_ms) + 20
        streams = (_burst([128] * rows, [outputs] * rows), stream) if rows else (stream,)
        over = f" over {rows} decodes" if rows else ""
        what = f"prompts of {low}-{high - 1} tokens back to back{over}, {seconds:.1f} s"
        result.append(Phase(label, what, "closed", "fit", streams, expected_s=seconds + 0.6))
    return result


def _arrivals(plan: _Plan, rate: float, seconds: float, shape: float) -> list[float]:
    """Arrival times with gamma distributed gaps (shape 1: Poisson)."""
    count = max(8, round(rate * seconds))
    gaps = plan.rng.gamma(shape, 1.0 / (shape * rate), size=count)
    return [round(float(x), 6) for x in np.cumsum(gaps) - gaps[0]]


def _mix(plan: _Plan) -> list[Phase]:
    seconds = max(6.0, 0.12 * plan.budget_s)
    mean_prompt, mean_output = 4080 / math.log(256), 392 / math.log(50)
    capacity = plan.speed.capacity_rps(mean_prompt, mean_output, plan.limits.kv_tokens)
    at_s = _arrivals(plan, 0.8 * capacity, seconds, 1.0)
    prompt = np.exp(plan.rng.uniform(math.log(16), math.log(4096), len(at_s))).astype(int)
    output = np.exp(plan.rng.uniform(math.log(8), math.log(400), len(at_s))).astype(int)
    stream = {"at_s": at_s, "prompt": prompt.tolist(), "output": output.tolist()}
    what = "Poisson arrivals at about 80% load, log-uniform lengths 16-4096 in / 8-400 out"
    return [Phase("mix80", what, "poisson", "fit", (stream,), expected_s=seconds + 3.0)]


def _draw(plan: _Plan, values: Sequence[int], count: int) -> np.ndarray:
    u = plan.rng.uniform(0, 100, count)
    return np.interp(u, _PERCENT, values).astype(int)


def _holdout(
    plan: _Plan, label: str, load: float, seconds: float, source: HoldoutTrace | _Lengths
) -> Phase:
    """A slice of a trace (or lengths drawn like one) at ``load`` times the capacity."""
    longest = plan.limits.max_model_len
    if not isinstance(source, HoldoutTrace):
        prompts, outputs, shape, name = source
        sample = _cut(_draw(plan, prompts, 4000), _draw(plan, outputs, 4000), longest)
        capacity = plan.speed.capacity_rps(
            float(sample[0].mean()), float(sample[1].mean()), plan.limits.kv_tokens
        )
        at_s = _arrivals(plan, load * capacity, seconds, shape)
        prompt, output = sample[0][: len(at_s)], sample[1][: len(at_s)]
        at_s = at_s[: len(prompt)]
    else:
        name = source.name
        prompt, output = _cut(source.prompt_tokens, source.output_tokens, longest)
        capacity = plan.speed.capacity_rps(
            float(prompt.mean()), float(output.mean()), plan.limits.kv_tokens
        )
        count = min(len(prompt), max(8, round(load * capacity * seconds)))
        arrival = np.asarray(source.arrival_s[:count], dtype=float)
        span = max(float(arrival[-1] - arrival[0]), 1e-9)
        rate = load * capacity
        at_s = [round(float(x), 6) for x in (arrival - arrival[0]) * (count / rate / span)]
        prompt, output = prompt[:count], output[:count]
    stream = {"at_s": at_s, "prompt": prompt.tolist(), "output": output.tolist()}
    what = f"{name} at about {load:.0%} of the capacity"
    expected_s = max(1.0, load) * seconds + 3.0
    return Phase(label, what, "rows", "holdout", (stream,), expected_s=expected_s)


def _clients(plan: _Plan, clients: int) -> Phase:
    """A closed loop, with lengths as ``vllm bench serve --dataset-name random`` draws them."""
    seconds = max(6.0, 0.1 * plan.budget_s)
    rows = min(clients, plan.limits.max_num_seqs)
    request_ms = plan.speed.prefill_ms(800) + 200 * plan.speed.decode_ms(rows) / rows
    count = max(4 * clients, round(1e3 * seconds / request_ms))
    stream = {
        "concurrency": clients,
        "prompt": plan.rng.integers(400, 1201, count).tolist(),
        "output": plan.rng.integers(100, 301, count).tolist(),
    }
    what = f"{clients} clients, each of whom sends its next request after an answer"
    expected_s = count * request_ms / 1e3 + 1.0
    label = f"clients{clients}"
    return Phase(label, what, "clients", "holdout", (stream,), 0.0, expected_s, clients)
