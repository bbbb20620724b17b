"""What changed between two versions of vLLM, from profiles of both measured on one GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qsim.calibrate.transfer.check import power_w
from qsim.calibrate.transfer.spans import MODES, Spans, StepPoint, decode_points, prefill_points
from qsim.catalog.gpus import GIB
from qsim.errors import CalibrationError
from qsim.files import write_text
from qsim.profiles.carry import SCHEMA, Change, release
from qsim.profiles.schema import HostTimes, Profile

#: the steps that tell how fast a host launches: one request, or nothing but the constant
LAUNCHES = ("launch_decode", "launch_piecewise", "launch_eager")


@dataclass(frozen=True)
class Pair:
    """One server under two versions, on one GPU."""

    before: Profile
    after: Profile

    @property
    def name(self) -> str:
        """The server's id."""
        return self.before.id

    def spans(self) -> dict[str, list[float]]:
        """Ratios of GPU spans at full clock, new over old, over chosen steps, by mode."""
        old, new = Spans(self.before), Spans(self.after)
        found: dict[str, list[float]] = {mode: [] for mode in MODES}
        for point in self._points():
            found[point.mode].append(new.ms(point) / old.ms(point))
        return found

    def power(self) -> list[float]:
        """Ratios of power over the same steps."""
        old, new = Spans(self.before), Spans(self.after)
        return [power_w(self.after, new, p) / power_w(self.before, old, p) for p in self._points()]

    def kv_gib(self) -> float:
        """Change of the KV cache's memory on each GPU, GiB."""
        m, n = self.before.memory, self.after.memory
        new, old = n.num_gpu_blocks * n.block_size, m.num_gpu_blocks * m.block_size
        return (new * n.kv_bytes_per_token - old * m.kv_bytes_per_token) / GIB

    def host(self, name: str) -> float:
        """Ratio of one of the host's times with 32 requests."""
        return _host_ms(self.after.host, name, 32) / _host_ms(self.before.host, name, 32)

    def _points(self) -> list[StepPoint]:
        kv = self.before.memory.num_gpu_blocks * self.before.memory.block_size
        return [*decode_points(kv), *prefill_points()]


def _host_ms(host: HostTimes, name: str, rows: int) -> float:
    constant, per_request = getattr(host, f"{name}_ms")
    return float(constant + per_request * rows)


def pairs_of(profiles: Sequence[Profile]) -> list[Pair]:
    """Profiles of two versions, put together by server.

    Raises
    ------
    CalibrationError
        If there are not two versions, or a server is there twice under one, or has no partner.
    """
    versions = sorted({release(p.identity.vllm_version or "0.24") for p in profiles})
    if len(versions) != 2:
        have = ", ".join(f"{a}.{b}" for a, b in versions)
        raise CalibrationError(f"the profiles are of vLLM {have}; give those of two versions")
    found: dict[str, dict[tuple[int, int], Profile]] = {}
    for p in profiles:
        of_server = found.setdefault(p.id, {})
        version = release(p.identity.vllm_version or "0.24")
        if version in of_server:
            raise CalibrationError(
                f"{p.id} under vLLM {p.identity.vllm_version} is given twice; give it once"
            )
        of_server[version] = p.as_measured()
    alone = sorted(i for i, of_server in found.items() if len(of_server) < 2)
    if alone:
        raise CalibrationError(
            f"{', '.join(alone)}: given under one version only; give both or neither"
        )
    return [Pair(found[i][versions[0]], found[i][versions[1]]) for i in sorted(found)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _left_out(pairs: Sequence[Pair], values: Callable[[Pair], Sequence[float]]) -> float:
    """Error in percent of the others' median factor for each pair, its 90th percentile."""
    of_pair = [np.asarray(values(p)) for p in pairs]
    errors: list[float] = []
    for i, own in enumerate(of_pair):
        others = [x for j, x in enumerate(of_pair) if j != i]
        factor = float(np.median([np.median(x) for x in others])) if others else 1.0
        errors.extend(100 * np.abs(factor / own - 1.0))
    return round(float(np.percentile(errors, 90)), 1)


def learn(pairs: Sequence[Pair], kernel_changed: Sequence[str] = ()) -> Change:
    """Factors from the pairs, and what error they have for a server that is not among them.

    A factor is the median over the servers of the median over steps; its error is what the others'
    factor is off at the steps of a server left out, the 90th percentile.

    Raises
    ------
    CalibrationError
        If the servers are of several types of GPU.
    """
    gpus = {p.before.identity.gpu for p in pairs}
    if len(gpus) != 1:
        raise CalibrationError(f"the servers ran on {', '.join(sorted(gpus))}; must be one type")
    spans = [p.spans() for p in pairs]
    by_pair = {p.name: s for p, s in zip(pairs, spans, strict=True)}
    mode = {m: _median([_median(s[m]) for s in spans]) for m in MODES}
    host = {n: _median([p.host(n) for p in pairs]) for n in ("schedule", "update", *LAUNCHES)}
    factors: dict[str, Any] = {m: round(f, 4) for m, f in mode.items()}
    factors |= {n: round(f, 3) for n, f in host.items()}
    before, after = (
        "{}.{}".format(*release(x.identity.vllm_version or "0.24"))
        for x in (pairs[0].before, pairs[0].after)
    )
    return Change(
        before=before,
        after=after,
        gpu=gpus.pop(),
        servers=[p.name for p in pairs],
        kernel_changed=sorted(kernel_changed),
        **factors,
        result_ms=round(
            _median([p.after.host.result_ms - p.before.host.result_ms for p in pairs]), 3
        ),
        kv_gib=round(_median([p.kv_gib() for p in pairs]), 2),
        error_percent={
            "decode": _left_out(pairs, lambda p: by_pair[p.name]["decode"]),
            "prefill": _left_out(
                pairs, lambda p: [*by_pair[p.name]["piecewise"], *by_pair[p.name]["eager"]]
            ),
            "power": _left_out(pairs, lambda p: p.power()),
            "host": _left_out(pairs, lambda p: [p.host(n) for n in LAUNCHES]),
            "kv_tokens": _left_out(
                pairs, lambda p: [p.after.memory.num_gpu_blocks / p.before.memory.num_gpu_blocks]
            ),
        },
    )


#: step sizes of the table: requests over contexts of 1,024 tokens, and prompt tokens
TABLE_ROWS, TABLE_TOKENS = (1, 16, 64, 192), (64, 512, 2048, 8192)


def table_rows(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """One row a server: its times under both versions, for people."""
    rows = []
    for pair in pairs:
        old, new = Spans(pair.before), Spans(pair.after)
        row = {"server": pair.name}

        def both(name: str, a: float, b: float, digits: int, row: dict[str, str] = row) -> None:
            row[name] = f"{a:.{digits}f} -> {b:.{digits}f}"

        for n in TABLE_ROWS:
            point = StepPoint(rows=n, context_tokens=1024 * n)
            both(f"decode {n}, ms", old.ms(point), new.ms(point), 2)
        for n in TABLE_TOKENS:
            point = StepPoint(prefill_tokens=n)
            both(f"prompt of {n}, ms", old.ms(point), new.ms(point), 1)
        a, b = pair.before.host, pair.after.host
        for name in LAUNCHES:
            both(f"{name.replace('_', ' ')}, ms", _host_ms(a, name, 1), _host_ms(b, name, 1), 1)
        both("schedule 64, ms", _host_ms(a, "schedule", 64), _host_ms(b, "schedule", 64), 2)
        both("result, ms", a.result_ms, b.result_ms, 2)
        both("KV blocks", pair.before.memory.num_gpu_blocks, pair.after.memory.num_gpu_blocks, 0)
        both("busy, W", pair.before.power.busy_w, pair.after.power.busy_w, 0)
        rows.append(row)
    return rows


def write_changes(path: Path, known: Sequence[Change], new: Change) -> None:
    """The file of changes with ``new`` in it, in the place of one of the same versions and GPU."""

    def key(c: Change) -> tuple[str, str, str]:
        return c.gpu, c.before, c.after

    kept = {key(c): c for c in known}
    if key(new) in kept:
        new = replace(new, api=new.api or kept[key(new)].api)
    kept[key(new)] = new
    data: Mapping[str, object] = {
        "schema": SCHEMA,
        "changes": [
            {k: v for k, v in asdict(kept[name]).items() if v is not None} for name in sorted(kept)
        ],
    }
    write_text(path, json.dumps(data, indent=1) + "\n")
