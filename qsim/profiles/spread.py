"""How machines of one type differ: the spread of their factors, learnt from recordings.

``spread.json`` beside this module is written by ``qsim calibrate spread`` from recordings of
servers whose profiles were measured on other machines. The factors' logarithms have a mean, a
standard deviation and correlations. Hosts are known absolutely: what was seen is a host's speed
against that of the shipped profiles, so for a profile of a slow host less of a factor is expected,
and of what goes with it. What several machines said of one profile (its own error, more than
theirs) is expected of the next machine too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.profiles.factors import FACTORS, HOST, scheduler_ms
from qsim.profiles.schema import Profile

SCHEMA = "qsim-spread/1"
FILE = Path(__file__).parent / "spread.json"


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of a machine's factors before it was seen: a normal law of their logarithms.

    Attributes
    ----------
    mean : array of shape (f,)
        In the order of :data:`qsim.profiles.factors.FACTORS`.
    covariance : array of shape (f, f)
    """

    mean: FloatArray
    covariance: FloatArray

    def seen(self, name: str, log: float, sd: float) -> Prior:
        """What is known once a factor was measured by itself, with this standard deviation.

        The normal law's conditional: of the others what goes with it is expected.
        """
        at = FACTORS.index(name)
        column = self.covariance[at]
        gain = column / (column[at] + sd**2)
        mean = self.mean + gain * (log - self.mean[at])
        return Prior(mean, self.covariance - np.outer(gain, column))

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """``n`` machines: logarithms of factors, shape (n, f)."""
        z = rng.standard_normal((n, len(self.mean)))
        return np.asarray(self.mean + z @ np.linalg.cholesky(self.covariance).T)


@dataclass(frozen=True)
class Known:
    """What machines said of one profile, told by the recordings that it was fitted on."""

    profile: str
    recordings: list[str]
    #: logarithm of a factor, against the mean of all machines
    off: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """The spread of machines.

    Attributes
    ----------
    mean, sd : dict of str to float
        Of the factors' logarithms, by factor.
    correlation : list of lists of float
        In the order of the factors.
    scheduler_ms : float
        :func:`qsim.profiles.factors.scheduler_ms` of the profiles that the factors are against;
        the hosts' mean is for these.
    machines : list of str
        The recordings that were used.
    known : list of Known
        What is known of single profiles.
    """

    mean: dict[str, float]
    sd: dict[str, float]
    correlation: list[list[float]]
    scheduler_ms: float
    machines: list[str]
    known: list[Known] = field(default_factory=list)

    def prior(self, profile: Profile) -> Prior:
        """What to expect of a machine whose server is the profile's."""
        sd = np.array([self.sd[n] for n in FACTORS])
        covariance = np.array(self.correlation) * np.outer(sd, sd)
        mean = np.array([self.mean[n] for n in FACTORS])
        # a slower host than that of the shipped profiles, and what goes with it
        slower = float(np.log(max(scheduler_ms(profile.host), 1e-6) / self.scheduler_ms))
        slower = min(max(slower, -2.0), 2.0)
        at = FACTORS.index("launch")
        shift = covariance[at] / covariance[at, at] * slower
        shift[[FACTORS.index(n) for n in HOST]] = slower
        mean = mean - shift
        for known in self.known:
            if known.recordings == profile.identity.recordings:
                mean += np.array([known.off[n] for n in FACTORS])
        return Prior(mean, covariance)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"schema": SCHEMA, "factors": list(FACTORS), **asdict(self)}


@lru_cache(maxsize=1)
def shipped_spread() -> Spread:
    """The shipped table. The file is the package's own, so only a test checks it."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    known = [Known(**k) for k in data.pop("known")]
    rest = {k: v for k, v in data.items() if k not in ("schema", "factors")}
    return Spread(**rest, known=known)
