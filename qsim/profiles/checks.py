"""What the types of a profile's fields do not say: orders, equal lengths, nested data."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict

from qsim.bounds import Count, Items, Line, Percent, Plain, check_name
from qsim.edge import build
from qsim.errors import ProfileError

if TYPE_CHECKING:
    from qsim.profiles.schema import MixedSpan, Profile


#: options of ``vllm serve`` that a profile may ask for: those that decide how a model is computed.
#: A profile may be anybody's, and options such as --trust-remote-code or --middleware run code.
VLLM_ARGS = (
    "--dtype",
    "--quantization",
    "--kv-cache-dtype",
    "--enforce-eager",
    "--enable-expert-parallel",
    "--all2all-backend",
    "--attention-backend",
    "--gpu-memory-utilization",
    "--block-size",
    "--max-num-partial-prefills",
    "--no-enable-chunked-prefill",
    "--disable-custom-all-reduce",
)


class _FitError(BaseModel):
    """Errors in percent; what else is stated is left alone."""

    model_config = ConfigDict(extra="allow")

    unit: Line = ""
    how: Line = ""
    worst_mean: Percent | None = None
    worst_median: Percent | None = None
    worst_p99: Percent | None = None
    worst_energy: Percent | None = None
    #: load -> recording -> metric
    phases: dict[Line, dict[Line, dict[Line, Percent | None]]] | None = None


_Range = Annotated[list[Count], Items(2, 2)]


class _MeasuredRange(BaseModel):
    """[smallest, largest] of what was measured; what else is stated is left alone."""

    model_config = ConfigDict(extra="allow")

    decode_rows: _Range | None = None
    decode_context_tokens: _Range | None = None
    step_tokens: _Range | None = None
    decode_steps: Count | None = None
    mixed_steps: Count | None = None


class _Parts(BaseModel):
    fit_error: _FitError
    measured_range: _MeasuredRange


def check(p: Profile, where: str) -> None:
    """Check a profile whose fields have the right types.

    Raises
    ------
    ProfileError
        Naming the file ``where``, the field, its value and the rule.
    """

    def need(ok: bool, name: str, value: object, rule: str) -> None:
        if not ok:
            raise ProfileError(f"{where}: {name} is {value!r:.300}; must be {rule}")

    def ascending(name: str, values: list[int], first: int | None = None) -> None:
        need(len(values) > 0, name, values, "a non-empty list")
        need(all(b > a for a, b in itertools.pairwise(values)), name, values, "ascending")
        need(first is None or values[0] == first, name, values, f"a list beginning with {first}")

    lat = p.latency
    ascending("latency.graph_sizes", lat.graph_sizes)
    need(lat.graph_sizes[0] >= 1, "latency.graph_sizes", lat.graph_sizes, "sizes >= 1")
    ascending("latency.decode.rows", lat.decode.rows)
    ascending("latency.decode.context_knots_tokens", lat.decode.context_knots_tokens, 0)
    n = len(lat.decode.rows)
    need(len(lat.decode.base_ms) == n, "latency.decode.base_ms", lat.decode.base_ms, f"{n} values")
    slopes = lat.decode.ms_per_context_token
    knots = len(lat.decode.context_knots_tokens)
    need(len(slopes) == knots, "latency.decode.ms_per_context_token", slopes, f"{knots} lists")
    for j, s in enumerate(slopes):
        need(len(s) == n, f"latency.decode.ms_per_context_token[{j}]", s, f"{n} values")
    for mode in ("piecewise", "eager"):
        mixed: MixedSpan = getattr(lat, mode)
        ascending(f"latency.{mode}.tokens", mixed.tokens)
        k = len(mixed.tokens)
        need(len(mixed.base_ms) == k, f"latency.{mode}.base_ms", mixed.base_ms, f"{k} values")
    t = lat.throttle
    need(t.full_w > t.start_w, "latency.throttle.full_w", t.full_w, f"> start_w {t.start_w}")
    need(p.power.cap_w > p.power.idle_w, "power.cap_w", p.power.cap_w, "> power.idle_w")
    source = p.identity.source
    need(
        source == ("transferred" if p.transferred else "measured"),
        "identity.source",
        source,
        "'measured', or 'transferred' with a transfer object",
    )
    policy = p.engine.scheduling_policy
    need(policy in ("fcfs", "priority"), "engine.scheduling_policy", policy, "'fcfs' or 'priority'")
    for word in p.identity.vllm_args:
        option = word.partition("=")[0]
        need(
            not word.startswith("-") or option in VLLM_ARGS,
            "identity.vllm_args",
            p.identity.vllm_args,
            f"options that decide how the model is computed: {', '.join(VLLM_ARGS)}",
        )
    _check_like(p, where)
    if p.fit_error or p.measured_range:
        parts: dict[str, Any] = {"fit_error": p.fit_error, "measured_range": p.measured_range}
        build(_Parts, parts, where, ProfileError)
    if p.quality is not None:
        _check_quality(p.quality, where)


def _check_like(p: Profile, where: str) -> None:
    """The ids of other profiles that it names."""
    ids = [("transfer.profiles", i) for i in p.transfer.profiles] if p.transfer else []
    if p.measured_host is not None:
        ids.append(("measured_host.like", p.measured_host.like))
    for field, text in ids:
        for part in text.split("/"):
            check_name(f"{where}: {field}", part, ProfileError)


def _check_quality(quality: dict[str, Any], where: str) -> None:
    try:
        Plain(depth=8).check(quality)
    except ValueError as e:
        raise ProfileError(f"{where}: quality {e}") from None
