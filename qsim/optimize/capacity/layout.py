"""One way to use the GPUs, what it carries, and all of them in order: the answer of a capacity."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsim.optimize.capacity.rate_search import Carried, Point
from qsim.optimize.deploy.vllm import option_words
from qsim.optimize.economics.prices import usd_per_1m
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.search.goals import QualityGoal
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import Slo

if TYPE_CHECKING:
    from qsim.sim.results.machine_ranges import MachineRanges


#: traffic where none is given
DEFAULT_TRAFFIC = "azure-conv-2023"
OBJECTIVES = ("rate", "cost", "energy")


@dataclass(frozen=True)
class Traffic:
    """The requests that every layout is given, faster or slower."""

    facts: Mapping[str, Any]
    #: requests a second at speed 1
    rate_rps: float
    #: TRACE and its options, as ``qsim simulate`` takes them; empty for a trace that was given as
    #: an object
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A method on so many GPUs of one type: replicas of a tensor-parallel size."""

    #: the profile with its engine settings, price and quality; ``blank.reason`` says why a layout
    #: was not simulated
    blank: Candidate
    #: servers that fit the GPUs
    replicas: int
    #: GPUs that are left over
    idle_gpus: int
    #: what was simulated
    carried: Carried | None = None
    #: why it carries nothing; "" if it does
    reason: str = ""

    @property
    def profile(self) -> str:
        """Its id."""
        return self.blank.profile

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return self.replicas * self.blank.tensor_parallel_size

    @property
    def best(self) -> Point | None:
        """The fastest simulation that met every goal."""
        return None if self.carried is None else self.carried.best

    def rate_rps(self, traffic: Traffic) -> float | None:
        """The highest rate at which every goal is met, requests/s; with users, what they reach."""
        if self.best is None:
            return None
        if self.users is not None:
            return self.metric("request_throughput")
        return self.best.speed * traffic.rate_rps

    @property
    def users(self) -> int | None:
        """The most users with which every goal is met; None where rates were searched."""
        return None if self.best is None else self.best.users

    @property
    def breaks_first(self) -> str | None:
        """The goal that a little more misses; None where nothing that was tried did."""
        broken = None if self.carried is None else self.carried.broken
        return None if broken is None else str(broken.outcome.binding.slo)

    def metric(self, key: str) -> float | None:
        """A number of the summary at that rate."""
        value = None if self.best is None else self.best.outcome.summary.get(key)
        return None if value is None else float(value)

    @property
    def usd_per_hour(self) -> float | None:
        """Rent of all GPUs of the layout, those left over too."""
        price = self.blank.price
        return None if price is None else (self.gpus + self.idle_gpus) * price.usd_per_hour

    def usd_per_1m(self, key: str) -> float | None:
        """USD per million of the tokens of ``output_throughput`` or ``total_token_throughput``."""
        return usd_per_1m(self.usd_per_hour, self.metric(key))

    def worth(self, objective: str) -> float:
        """What it is ordered by, less is better; inf where it is not known."""
        if self.best is None:
            return math.inf
        value = {
            "rate": -(self.best.speed if self.best.users is None else self.best.users),
            "cost": self.usd_per_1m("output_throughput"),
            "energy": self.metric("joules_per_output_token"),
        }[objective]
        return math.inf if value is None else float(value)

    def simulate_command(self, capacity: Capacity, speed: float | None = None) -> str:
        """The command that gives the figures at the rate again; "" for a trace given as object."""
        if not capacity.traffic.words or (speed is None and self.best is None):
            return ""
        speed = self.best.speed if speed is None and self.best is not None else speed
        settings = capacity.settings
        words = ["qsim", "simulate", *capacity.traffic.words]
        if self.users is None:
            words += ["--speed", f"{speed:.15g}"]
        else:
            words += ["--concurrency", str(self.users)]
            if capacity.think_time_s:
                words += ["--think-time", f"{capacity.think_time_s!r}"]
        words += ["--profile", self.blank.source or self.profile, "--replicas", str(self.replicas)]
        words += ["--router", str(settings["router"]), "--seed", str(settings["seed"])]
        if settings["too_long"] != "error":
            words += ["--too-long", str(settings["too_long"])]
        if settings.get("text_prompts"):
            words.append("--text-prompts")
        words += option_words(self.blank.options.to_dict())
        words += [w for s in capacity.slos for w in ("--slo", str(s))]
        return shlex.join(words)

    def to_dict(self, capacity: Capacity) -> dict[str, Any]:
        """JSON-ready."""
        blank, best, found = self.blank, self.best, self.carried
        broken = None if found is None else found.broken
        base = capacity.traffic.rate_rps
        return {
            "profile": self.profile,
            "gpu": blank.gpu,
            "model": blank.model,
            "method": blank.method,
            "tensor_parallel_size": blank.tensor_parallel_size,
            "vllm_version": blank.vllm_version or None,
            "replicas": self.replicas,
            "gpus": self.gpus,
            "idle_gpus": self.idle_gpus,
            "options": blank.options.to_dict(),
            "reason": self.reason or None,
            "note": blank.note or None,
            "caution": blank.caution or None,
            "profile_error_percent": dict(blank.error_percent),
            "quality": None if blank.quality is None else blank.quality.to_dict(),
            "rate_rps": self.rate_rps(capacity.traffic),
            "speed": None if best is None else best.speed,
            "users": self.users,
            "breaks_at_rps": None
            if broken is None or broken.users is not None
            else broken.speed * base,
            "breaks_at_users": None if broken is None else broken.users,
            "breaks_first": self.breaks_first,
            "output_tokens_per_s": self.metric("output_throughput"),
            "tokens_per_s": self.metric("total_token_throughput"),
            "usd_per_hour": self.usd_per_hour,
            "usd_per_1m_output_tokens": self.usd_per_1m("output_throughput"),
            "usd_per_1m_tokens": self.usd_per_1m("total_token_throughput"),
            "joules_per_output_token": self.metric("joules_per_output_token"),
            "avg_power_w": self.metric("avg_power_w"),
            "slos": [] if best is None else [s.to_dict() for s in best.outcome.slos],
            "attainment": None if best is None else best.outcome.attainment,
            "summary": None if best is None else dict(best.outcome.summary),
            "command": self.simulate_command(capacity) or None,
            "simulations": []
            if found is None
            else [
                {
                    **(
                        {"rate_rps": p.speed * base, "speed": p.speed}
                        if p.users is None
                        else {"users": p.users}
                    ),
                    **p.outcome.to_dict(),
                }
                for p in found.points
            ],
        }


@dataclass(frozen=True)
class Capacity:
    """The answer of :func:`qsim.capacity`: every layout, the best first."""

    #: by ``objective``; those that carry nothing are last
    layouts: tuple[Layout, ...]
    #: GPUs of each type
    stock: Mapping[str, int]
    traffic: Traffic
    slos: tuple[Slo, ...]
    goodput: Goodput | None
    objective: str
    quality_goal: QualityGoal
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: 90% ranges of the best layout's figures at its rate, over machines
    machines: MachineRanges | None = None
    #: of users whose number was searched; None where rates were
    think_time_s: float | None = None

    @property
    def range_90(self) -> dict[str, tuple[float, float]]:
        """What the best layout's figures at its rate may be on another machine."""
        best = self.best
        if self.machines is None or best is None or best.best is None:
            return {}
        return self.machines.of(best.best.outcome.figures)

    @property
    def best(self) -> Layout | None:
        """The first, if it carries anything."""
        first = self.layouts[0] if self.layouts else None
        return first if first is not None and first.best is not None else None

    def objection(self) -> str:
        """Why there is no best layout."""
        reasons = [f"{layout.profile}: {layout.reason}" for layout in self.layouts]
        return "no layout carries this traffic within the SLOs; " + "; ".join(reasons[:3])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__

        return {
            "schema": "qsim-capacity/1",
            "qsim_version": __version__,
            "objective": self.objective,
            "stock": dict(self.stock),
            "traffic": {**self.traffic.facts, "words": list(self.traffic.words)},
            "slos": [str(s) for s in self.slos],
            "goodput": None if self.goodput is None else str(self.goodput),
            "think_time_s": self.think_time_s,
            "quality": self.quality_goal.to_dict(),
            "settings": dict(self.settings),
            "best": None if self.best is None else self.best.profile,
            "machines": None
            if self.machines is None
            else {"requests": self.machines.requests, "range_90": self.range_90},
            "layouts": [layout.to_dict(self) for layout in self.layouts],
        }


def ranked(layouts: Sequence[Layout], objective: str) -> tuple[Layout, ...]:
    """The best first; of equal ones that with the better quality, then by id."""

    def key(layout: Layout) -> tuple[float, float, str]:
        quality = layout.blank.quality
        return (layout.worth(objective), -(quality.mean_pct if quality else 0.0), layout.profile)

    return tuple(sorted(layouts, key=key))
