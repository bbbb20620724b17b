"""Tiers of clients: what a request's client pays for, and how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.checks import finite, whole
from qsim.errors import ScenarioError
from qsim.traces.trace import MOST_PRIORITY

__all__ = ["Tier", "Tiers"]


@dataclass(frozen=True)
class Tier:
    """One kind of clients.

    Attributes
    ----------
    share : float
        Of all requests; shares count relative to their sum.
    priority : int
        As vLLM's: the smaller goes first.
    timeout_s : float, optional
        How long a client waits for its whole answer; as long as it takes by default.

    Raises
    ------
    ScenarioError
        If a value is out of bounds.
    """

    share: float
    priority: int = 0
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        finite("share", self.share, 0.0, 1e9, above=True)
        whole("priority", self.priority, -MOST_PRIORITY, MOST_PRIORITY)
        if self.timeout_s is not None:
            finite("timeout_s", self.timeout_s, 0.0, 1e9, above=True)


@dataclass(frozen=True)
class Tiers:
    """The tiers that a workload's requests are drawn from.

    Raises
    ------
    ScenarioError
        If there is none.
    """

    tiers: Sequence[Tier]

    def __post_init__(self) -> None:
        if not self.tiers:
            raise ScenarioError("tiers is empty; leave it out, or give one at least")

    def draw(
        self, rng: np.random.Generator, number: int
    ) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float64] | None]:
        """Priorities and timeouts (s) of ``number`` requests; None for what no tier has."""
        shares = np.array([t.share for t in self.tiers])
        chosen = rng.choice(len(shares), size=number, p=shares / shares.sum())
        priority = np.array([t.priority for t in self.tiers], np.int64)
        timeout_s = np.array([np.inf if t.timeout_s is None else t.timeout_s for t in self.tiers])
        return (
            priority[chosen] if priority.any() else None,
            timeout_s[chosen] if np.isfinite(timeout_s).any() else None,
        )
