"""A profile as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsim.profiles.lookup import carry_note, stated_errors
from qsim.report.text.tables import WIDTH, number, table

if TYPE_CHECKING:
    from qsim.profiles.schema import Profile


def profile_text(profile: Profile) -> str:
    """A profile in readable form."""
    i, m, lat, power = profile.identity, profile.memory, profile.latency, profile.power
    decode = lat.decode
    prefill = lat.eager
    tokens = (m.num_gpu_blocks - 1) * m.block_size
    facts = [
        (
            "source",
            f"{i.source}; vLLM {i.vllm_version or '?'}, driver {i.driver or '?'}, "
            f"{i.date or 'no date'}",
        ),
        ("recordings", ", ".join(i.recordings) or "-"),
        *_adapted(profile),
        ("vllm args", " ".join(i.vllm_args) or "-"),
        (
            "KV cache",
            f"{number(tokens)} tokens in {number(m.num_gpu_blocks)} blocks of "
            f"{m.block_size}, {number(m.kv_bytes_per_token)} bytes a token",
        ),
        ("weights", f"{m.weight_bytes / 2**30:.1f} GiB"),
        ("engine", ", ".join(f"{k} {v}" for k, v in vars(profile.engine).items())),
        ("decode step", f"{_times(decode.rows, decode.base_ms)} requests, no context"),
        ("prefill step", f"{_times(prefill.tokens, prefill.base_ms)} tokens"),
        (
            "power",
            f"idle {number(power.idle_w)} W, busy {number(power.busy_w)} W and "
            f"{number(power.j_per_prefill_token * 1000, 3)} mJ a prefill token, "
            f"{number(power.j_per_decode_token * 1000, 3)} mJ a decode token; "
            f"at most {number(power.cap_w)} W",
        ),
    ]
    if profile.measured_host is not None:
        host = profile.measured_host
        facts.append(
            (
                "host",
                f"that of {host.like}; the one measured takes {host.slower:.2f} times as long",
            )
        )
    if profile.fit_error:
        errors = ", ".join(f"{k} {v:.1f}%" for k, v in stated_errors(profile).items())
        how = "estimated" if profile.transferred else "worst case; loads left out of the fit"
        facts.append(("error", f"{errors} ({how})"))
    if (note := carry_note(profile)) is not None:
        facts.append(("carried", note))
    if profile.transfer is not None:
        t = profile.transfer
        facts.append(("transferred", "from " + ", ".join([*t.profiles, *t.tables])))
        facts.extend(_leaves("estimated error %", t.error_percent))
        if t.error_from:
            facts.append(("estimated from", t.error_from))
        facts.extend(("rule", r) for r in t.rules)
    for title, data in (("quality", profile.quality), ("measured", profile.measured_range)):
        facts.extend(_leaves(title, data or {}))
    facts.extend(("note", n) for n in i.notes)
    width = max(len(k) for k, _ in facts)
    lines = [
        textwrap.fill(
            v,
            WIDTH,
            initial_indent=k.ljust(width + 2),
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
        for k, v in facts
    ]
    return "\n".join([profile.id, "", *lines, *_error_table(profile)])


def _adapted(profile: Profile) -> list[tuple[str, str]]:
    """What a profile was adapted by, and with which factors."""
    a = profile.adapted
    if a is None:
        return []
    factors = [
        f"{name.replace('_', ' ')} x{value:.2f} ({low:.2f} to {high:.2f})"
        for name, (value, low, high) in a.factors.items()
    ]
    return [
        ("adapted", f"from {a.profile} by {', '.join(a.loads)}"),
        ("factors", ", ".join(factors)),
        *(("note", text) for text in a.notes),
    ]


def _error_table(profile: Profile) -> list[str]:
    """A row a load that was left out of the fit: simulated against measured, in percent."""
    names = [f"{s}_{m}_ms" for m in ("ttft", "tpot", "e2el") for s in ("mean", "median", "p99")]
    phases = profile.fit_error.get("phases") or {}
    rows = [
        [
            phase,
            recording.rpartition("--")[2],
            *(_signed(errors.get(n)) for n in (*names, "energy_j")),
        ]
        for phase, recordings in phases.items()
        for recording, errors in recordings.items()
    ]
    if not rows:
        return []
    heads = [f"{n.split('_')[1].upper()}\n{n.split('_')[0]}" for n in names]
    title = "error in % of the measured value, on loads that were left out of the fit"
    return ["", title, table(["load", "recording", *heads, "energy"], rows, left=2)]


def _signed(value: Any) -> str:
    return f"{value:+.1f}" if isinstance(value, int | float) else "-"


def _times(sizes: Sequence[int], times_ms: Sequence[float], count: int = 5) -> str:
    """At most ``count`` steps, the first and the last among them."""
    pairs = list(zip(sizes, times_ms, strict=True))
    if len(pairs) > count:
        pairs = [pairs[round(k * (len(pairs) - 1) / (count - 1))] for k in range(count)]
    return ", ".join(f"{number(ms, 3)} ms at {size}" for size, ms in pairs)


def _leaves(title: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested data as lines: groups of plain values, each under its path."""
    plain = {k: v for k, v in data.items() if not isinstance(v, Mapping)}
    lines = []
    if plain:
        lines.append((title, ", ".join(f"{k} {_plain(v)}" for k, v in plain.items())))
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines.extend(_leaves(f"{title} {key}", value))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_plain(v) for v in value) if len(value) == 2 else str(value)
    return number(value)
