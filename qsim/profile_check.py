"""What the types of a profile's fields do not say: lengths, signs, orders."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import TYPE_CHECKING

from qsim.errors import ProfileError

if TYPE_CHECKING:
    from qsim.profile import FrontEnd, HostTimes, MixedSpan, Profile

__all__ = ["check"]


def check(p: Profile, where: str) -> None:
    """Check a profile that was built from JSON.

    Raises
    ------
    ProfileError
        Naming the file ``where``, the field, its value and the rule.
    """

    def need(ok: bool, name: str, value: object, rule: str) -> None:
        if not ok:
            raise ProfileError(f"{where}: {name} is {value!r}; must be {rule}")

    def ascending(name: str, values: list[int], first: int | None = None) -> None:
        need(len(values) > 0, name, values, "a non-empty list")
        need(all(b > a for a, b in itertools.pairwise(values)), name, values, "ascending")
        need(first is None or values[0] == first, name, values, f"a list beginning with {first}")

    def positive(name: str, values: list[float]) -> None:
        need(all(0 < v < float("inf") for v in values), name, values, "finite and > 0")

    def not_negative(name: str, values: list[float]) -> None:
        need(all(0 <= v < float("inf") for v in values), name, values, "finite and >= 0")

    lat = p.latency
    ascending("latency.graph_sizes", lat.graph_sizes)
    need(lat.graph_sizes[0] >= 1, "latency.graph_sizes", lat.graph_sizes, "sizes >= 1")
    ascending("latency.decode.rows", lat.decode.rows)
    ascending("latency.decode.context_knots_tokens", lat.decode.context_knots_tokens, 0)
    n = len(lat.decode.rows)
    need(len(lat.decode.base_ms) == n, "latency.decode.base_ms", lat.decode.base_ms, f"{n} values")
    positive("latency.decode.base_ms", lat.decode.base_ms)
    slopes = lat.decode.ms_per_context_token
    knots = len(lat.decode.context_knots_tokens)
    need(len(slopes) == knots, "latency.decode.ms_per_context_token", slopes, f"{knots} lists")
    for j, s in enumerate(slopes):
        need(len(s) == n, f"latency.decode.ms_per_context_token[{j}]", s, f"{n} values")
        not_negative(f"latency.decode.ms_per_context_token[{j}]", s)
    for mode in ("piecewise", "eager"):
        mixed: MixedSpan = getattr(lat, mode)
        ascending(f"latency.{mode}.tokens", mixed.tokens)
        k = len(mixed.tokens)
        need(len(mixed.base_ms) == k, f"latency.{mode}.base_ms", mixed.base_ms, f"{k} values")
        positive(f"latency.{mode}.base_ms", mixed.base_ms)
        for name in ("ms_per_decode_context_token", "ms_per_pair", "ms_per_chunk", "ms_per_decode"):
            not_negative(f"latency.{mode}.{name}", [getattr(mixed, name)])
    t = lat.throttle
    need(t.full_w > t.start_w >= 0, "latency.throttle.full_w", t.full_w, f"> start_w {t.start_w}")
    not_negative("latency.throttle", [t.decode, t.piecewise, t.eager])
    machines: list[tuple[str, HostTimes, FrontEnd]] = [("", p.host, p.frontend)]
    if p.measured_host is not None:
        m = p.measured_host
        machines.append(("measured_host.", m.host, m.frontend))
        positive("measured_host.slower", [m.slower])
    for prefix, host, frontend in machines:
        for f in fields(p.host):
            v = getattr(host, f.name)
            if isinstance(v, list):
                need(len(v) == 2, f"{prefix}host.{f.name}", v, "[constant, per request or 1k]")
            not_negative(f"{prefix}host.{f.name}", v if isinstance(v, list) else [v])
        for f in fields(p.frontend):
            not_negative(f"{prefix}frontend.{f.name}", [getattr(frontend, f.name)])
    for f in fields(p.power):
        not_negative(f"power.{f.name}", [getattr(p.power, f.name)])
    need(p.power.tau_s > 0, "power.tau_s", p.power.tau_s, "> 0")
    need(p.power.cap_w > p.power.idle_w, "power.cap_w", p.power.cap_w, "> power.idle_w")
    source = p.identity.source
    need(
        source == ("transferred" if p.transferred else "measured"),
        "identity.source",
        source,
        "'measured', or 'transferred' with a transfer object",
    )
    if p.transfer is not None:
        errors = p.transfer.error_percent
        need(len(errors) > 0, "transfer.error_percent", errors, "errors by quantity, not empty")
        not_negative("transfer.error_percent", list(errors.values()))
    m2 = p.memory
    need(m2.num_gpu_blocks >= 2, "memory.num_gpu_blocks", m2.num_gpu_blocks, ">= 2")
    need(m2.block_size >= 1, "memory.block_size", m2.block_size, ">= 1")
    need(m2.kv_bytes_per_token >= 1, "memory.kv_bytes_per_token", m2.kv_bytes_per_token, ">= 1")
    e = p.engine
    need(e.max_num_seqs >= 1, "engine.max_num_seqs", e.max_num_seqs, ">= 1")
    need(
        e.max_num_batched_tokens >= 1,
        "engine.max_num_batched_tokens",
        e.max_num_batched_tokens,
        ">= 1",
    )
    need(e.max_model_len >= 2, "engine.max_model_len", e.max_model_len, ">= 2")
    need(
        e.scheduling_policy in ("fcfs", "priority"),
        "engine.scheduling_policy",
        e.scheduling_policy,
        "'fcfs' or 'priority'",
    )
