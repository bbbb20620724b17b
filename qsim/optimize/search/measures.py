"""The figures of a fleet that an optimizer can weigh, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsim.checks import is_number, near_names
from qsim.errors import ScenarioError
from qsim.optimize.search.fleet_task import FleetTask, TaskPool

if TYPE_CHECKING:
    from qsim.optimize.economics.prices import Price
    from qsim.optimize.search.goals import Carbon
    from qsim.quality.recovery import Recovery


#: what a latency may be told as: any percentile of any of the four
_LATENCY = re.compile(r"(mean|median|p(?:\d{1,2}(?:\.\d+)?|100))_(ttft|tpot|itl|e2el)_ms")


@dataclass(frozen=True)
class Measure:
    """One figure."""

    #: as in a summary
    name: str
    #: for people, with the unit
    title: str
    #: whether more is better
    maximize: bool = False
    #: what it cannot be told without: ``"price"``, ``"region"``, ``"slo"``, or nothing
    needs: str = ""


MEASURES = {
    m.name: m
    for m in (
        Measure("energy_j", "energy, J"),
        Measure("joules_per_output_token", "J per output token"),
        Measure("avg_power_w", "mean power, W"),
        Measure("usd_per_hour", "USD per hour", needs="price"),
        Measure("cost_usd", "cost of the run, USD", needs="price"),
        Measure("usd_per_1m_output_tokens", "USD per million output tokens", needs="price"),
        Measure("usd_per_1m_tokens", "USD per million tokens", needs="price"),
        Measure("gpus", "GPUs"),
        Measure("replicas", "replicas"),
        Measure("quality", "quality, % of the 16-bit score", maximize=True),
        Measure("quality_low", "quality, low end, %", maximize=True),
        Measure("gco2e", "gCO2e of the run", needs="region"),
        Measure("gco2e_per_hour", "gCO2e per hour", needs="region"),
        Measure("gco2e_per_1k_output_tokens", "gCO2e per 1000 output tokens", needs="region"),
        Measure("request_throughput", "requests/s", maximize=True),
        Measure("output_throughput", "output tokens/s", maximize=True),
        Measure("total_token_throughput", "tokens/s", maximize=True),
        Measure("output_throughput_per_gpu", "output tokens/s per GPU", maximize=True),
        Measure("request_goodput", "requests/s within the SLOs", maximize=True, needs="slo"),
        Measure("attainment", "share within the SLOs", maximize=True, needs="slo"),
        Measure("duration", "duration, s"),
        Measure("completed", "requests completed", maximize=True),
        Measure("failed", "requests failed"),
        Measure("preemptions", "preemptions"),
        Measure("beyond_measured", "share of the steps beyond the measured range"),
        Measure("overload", "share of the requests that is not finished as they arrive"),
        Measure("cached_tokens", "prompt tokens from the prefix cache", maximize=True),
    )
}

ALIASES = {
    "latency": "p99_e2el_ms",
    "ttft": "p99_ttft_ms",
    "tpot": "p99_tpot_ms",
    "energy": "joules_per_output_token",
    "power": "avg_power_w",
    "cost": "usd_per_hour",
    "carbon": "gco2e_per_1k_output_tokens",
    "throughput": "output_throughput",
    "goodput": "request_goodput",
}
_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def find_measure(name: str) -> Measure:
    """A figure by its name or alias, or any latency such as ``p95_ttft_ms``.

    Raises
    ------
    ScenarioError
        For an unknown one, with near names.
    """
    text = ALIASES.get(name.strip(), name.strip())
    if text in MEASURES:
        return MEASURES[text]
    if re.fullmatch(r"gpus_[a-z0-9_-]+", text):
        return Measure(text, f"GPUs, {text.removeprefix('gpus_')}")
    latency = _LATENCY.fullmatch(text)
    if latency:
        statistic, metric = latency.groups()
        return Measure(text, f"{_TITLES[metric]} {statistic}, ms")
    known = [*ALIASES, *MEASURES, "p99_ttft_ms", "p99_tpot_ms", "p99_itl_ms", "p99_e2el_ms"]
    raise ScenarioError(
        f"figure {name!r} is unknown; {near_names(text, known)} (latencies: mean, median or pNN of "
        "ttft, tpot, itl or e2el, as in p99_ttft_ms)"
    )


def statistics(names: Sequence[str]) -> tuple[str, ...]:
    """The latencies among ``names``."""
    return tuple(dict.fromkeys(n for n in names if _LATENCY.fullmatch(n)))


def measure_fleet(task: FleetTask, latencies: tuple[str, ...] = ()) -> dict[str, float | None]:
    """Simulate a fleet: the plain numbers of its summary, and the latencies asked for.

    What is a statistic over nothing is None.
    """
    from qsim.sim.results.slo import all_met, attainment, check_slos

    result = task.simulate()
    summary = result.summary(task.slos)
    figures = {k: v for k, v in summary.items() if v is None or is_number(v)}
    for name in latencies:
        if name not in figures:
            parts = _LATENCY.fullmatch(name)
            assert parts is not None
            value = result.statistic(parts[2], parts[1])
            figures[name] = None if value != value else value
    figures["peak_waiting"] = max(r["peak_waiting"] for r in result.replica_stats)
    figures["attainment"] = attainment(result, task.slos) if task.slos else None
    figures["beyond_measured"] = None if result.beyond is None else result.beyond.step_share
    outcomes = check_slos(result, task.slos)
    load = result.load
    if all(o.met for o in outcomes):  # one that misses an SLO has missed
        load = task.settled(load)
    figures["overload"] = load.overload
    figures["finished_rps"] = load.finished_rps
    if task.slos:
        figures["slos_met"] = all_met(outcomes, load.overloaded and not task.allow_backlog)
    return figures


def worst_quality(found: Sequence[Recovery | None]) -> Recovery | None:
    """That with the lowest low end; None if one is not known."""
    known = [q for q in found if q is not None]
    return min(known, key=lambda q: q.low_pct) if known and len(known) == len(found) else None


@dataclass(frozen=True)
class Worth:
    """What the figures of a simulation are worth, by profile: price, quality and carbon."""

    prices: Mapping[str, Price | None] = field(default_factory=dict)
    quality: Mapping[str, Recovery | None] = field(default_factory=dict)
    carbon: Carbon | None = None
    #: figures ``gpus_TYPE`` that are told, the GPUs of one type
    types: tuple[str, ...] = ()

    def complete(
        self, figures: Mapping[str, float | None], pools: Sequence[TaskPool]
    ) -> dict[str, float | None]:
        """``figures`` of :func:`measure_fleet`, and those that need no simulation.

        The quality of a mixed fleet is that of its worst pool: nobody knows who gets which answer.
        """
        full: dict[str, Any] = dict(figures)
        gpus = sum(p.gpus for p in pools)
        hours = (figures.get("duration") or 0.0) / 3600
        tokens = figures.get("total_output_tokens") or 0
        throughput = figures.get("output_throughput")
        full |= {
            "replicas": sum(p.replicas for p in pools),
            "gpus": gpus,
            "output_throughput_per_gpu": None if throughput is None else throughput / gpus,
        }
        for pool in pools:
            name = f"gpus_{pool.profile.identity.gpu}"
            if name in self.types:
                full[name] = full.get(name, 0) + pool.gpus
        full |= {name: 0 for name in self.types if name not in full}
        prices = [self.prices.get(p.profile.id) for p in pools]
        known = [p for p in prices if p is not None]
        if len(known) == len(pools):
            each = zip(pools, known, strict=True)
            usd = round(sum(p.gpus * price.usd_per_hour for p, price in each), 6)
            full["usd_per_hour"] = usd
            full["cost_usd"] = usd * hours
            full["usd_per_1m_output_tokens"] = usd * hours / tokens * 1e6 if tokens else None
            every = tokens + (figures.get("total_input_tokens") or 0)
            full["usd_per_1m_tokens"] = usd * hours / every * 1e6 if every else None
        told = [self.quality.get(p.profile.id) for p in pools]
        quality = worst_quality(told)
        if quality is not None:
            full["quality"], full["quality_low"] = quality.mean_pct, quality.low_pct
        energy_j = figures.get("energy_j")
        if self.carbon is not None and energy_j is not None:
            grams = self.carbon.gco2e(energy_j)
            full["gco2e"] = grams
            full["gco2e_per_hour"] = grams / hours if hours else None
            full["gco2e_per_1k_output_tokens"] = grams / tokens * 1000 if tokens else None
        return full
