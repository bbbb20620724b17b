"""A workload of one's own, from an arrival process and length distributions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from qsim.errors import ScenarioError, TraceError
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import dialect_of, read_csv
from qsim.traces.synth.arrivals import Bursts, Gaps, RateProfile, bursts_for_fano
from qsim.traces.synth.lengths import LengthModel, parse_lengths
from qsim.traces.synth.presets import load_preset
from qsim.traces.synth.synthesize import Span, Workload

#: The arrival processes by name.
ARRIVALS = ("poisson", "gamma", "weibull", "diurnal", "bursty")


def custom_workload(
    arrivals: str,
    span: Span,
    *,
    cv: float | None = None,
    peak_to_trough: float = 3.0,
    peak_hour: float = 15.0,
    rate_profile: Path | None = None,
    fano: float = 10.0,
    fano_window: float = 60.0,
    busy_fraction: float = 0.25,
    busy_seconds: float = 30.0,
    prompt_tokens: str | None = None,
    output_tokens: str | None = None,
    correlation: float | None = None,
    lengths: str = "azure-conv-2023",
) -> Workload:
    """The workload for ``qsim traces synth --arrivals``.

    Parameters
    ----------
    arrivals : str
        One of ``ARRIVALS``.
    span : Span
        Its rate, or requests over duration, is the mean rate.
    cv : float, optional
        CV of the gaps; needed by gamma and weibull.
    peak_to_trough, peak_hour : float
        Of the diurnal sine.
    rate_profile : path, optional
        CSV with ``t_s,rate_rps`` instead of the sine.
    fano, fano_window, busy_fraction, busy_seconds : float
        Of bursty arrivals; see ``bursts_for_fano``.
    prompt_tokens, output_tokens : str, optional
        Length distributions; see ``parse_lengths``. Those of the preset ``lengths`` otherwise.
    correlation : float, optional
        Of the Gaussian copula between the lengths; 0 for lengths given here.

    Raises
    ------
    ScenarioError, TraceError
        If an option is missing, not allowed or does not go with the arrival process.
    """
    if arrivals not in ARRIVALS:
        raise ScenarioError(f"arrivals is {arrivals!r}; must be one of {', '.join(ARRIVALS)}")
    if rate_profile is not None and arrivals != "diurnal":
        raise ScenarioError(f"rate_profile is given, but arrivals is {arrivals!r}; use diurnal")
    if cv is None and arrivals in ("gamma", "weibull"):
        raise ScenarioError(f"{arrivals} arrivals need --cv (1 is Poisson, 2 is bursty)")
    if cv is not None and arrivals in ("poisson", "bursty"):
        raise ScenarioError(f"cv is {cv:g}, but {arrivals} arrivals take none; use gamma")
    rate_rps = span.rate_rps
    if rate_rps is None and span.requests is not None and span.duration_s is not None:
        rate_rps = span.requests / span.duration_s
    if rate_rps is None and rate_profile is None:
        raise ScenarioError("the rate is missing; give --rate, or --requests and --duration")
    if span.duration_s is None and span.requests is None:
        raise ScenarioError("the length is missing; give --duration or --requests")

    gaps = Gaps()
    if arrivals in ("gamma", "weibull"):
        gaps = Gaps(arrivals, cv or 1.0)
    elif cv is not None:
        gaps = Gaps("gamma", cv)
    profile = RateProfile.constant(rate_rps or 1.0)
    bursts: Bursts | None = None
    if arrivals == "diurnal":
        profile = (
            RateProfile.sinusoid(rate_rps or 1.0, peak_to_trough, peak_hour * 3600)
            if rate_profile is None
            else read_rate_profile(rate_profile)
        )
    elif arrivals == "bursty":
        bursts = bursts_for_fano(
            fano, fano_window, (rate_rps or 1.0) * span.scale, busy_fraction, busy_seconds
        )
    return Workload(
        name=arrivals,
        profile=profile,
        gaps=gaps,
        lengths=_lengths(prompt_tokens, output_tokens, correlation, lengths),
        bursts=bursts,
    )


def _lengths(
    prompt: str | None, output: str | None, correlation: float | None, preset: str
) -> LengthModel:
    model = load_preset(preset).lengths
    if prompt is not None:
        model = replace(model, prompt=parse_lengths("prompt_tokens", prompt), rho=0.0)
    if output is not None:
        model = replace(model, output=parse_lengths("output_tokens", output), rho=0.0)
    return model if correlation is None else replace(model, rho=correlation)


def read_rate_profile(path: Path) -> RateProfile:
    """A rate profile from CSV: ``t_s`` from 0 in equal steps, and ``rate_rps``.

    Raises
    ------
    TraceError
        If a column is missing, a value is malformed, or the steps are not equal.
    """
    source = Source(path)
    names = dialect_of(source.head).names
    for name in ("t_s", "rate_rps"):
        if name not in names:
            raise TraceError(
                f"{path}, line 1: no column {name!r}; the columns are {', '.join(names)}"
            )
    at = names.index("t_s"), names.index("rate_rps")
    rows = read_csv(source, [(at[0], "number"), (at[1], "number")])
    blocks = [(r.floats(0), r.floats(1)) for r in rows]
    if not blocks or len(np.concatenate([t for t, _ in blocks])) < 2:
        raise TraceError(f"{path}: a rate profile needs at least 2 rows of t_s,rate_rps")
    times = np.concatenate([t for t, _ in blocks])
    steps = np.diff(times)
    if times[0] != 0 or not (steps[0] > 0 and np.allclose(steps, steps[0])):
        raise TraceError(f"{path}, column 't_s': must go from 0 in equal steps > 0")
    return RateProfile.steps(np.concatenate([r for _, r in blocks]), float(steps[0]))
