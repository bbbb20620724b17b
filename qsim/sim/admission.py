"""What has to be settled before a run: settings, and which requests a server would take."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qsim import __version__
from qsim.errors import ScenarioError, TraceError
from qsim.profile import Profile
from qsim.sim.config import EngineConfig, EngineOptions
from qsim.sim.router import ROUTERS
from qsim.traces.trace import Trace

__all__ = ["Admission", "beyond_measured", "resolve", "scenario_of"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def resolve(
    profile: Profile | str,
    options: EngineOptions | None,
    replicas: int,
    router: str,
    seed: int,
    too_long: str,
) -> tuple[Profile, EngineConfig]:
    """The profile and the engine's settings.

    Raises
    ------
    ScenarioError
        If an option is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    """
    if isinstance(profile, str):
        from qsim.profiles import load_profile

        profile = load_profile(profile)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise ScenarioError(f"replicas is {replicas!r}; must be a whole number >= 1")
    if too_long not in ("error", "reject"):
        raise ScenarioError(f"too_long is {too_long!r}; must be 'error' or 'reject'")
    if router not in ROUTERS:
        raise ScenarioError(f"router is {router!r}; must be one of: {', '.join(ROUTERS)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ScenarioError(f"seed is {seed!r}; must be a whole number >= 0")
    return profile, (options or EngineOptions()).resolve(profile)


class Admission:
    """Takes the requests that fit ``max_model_len``, whole or part by part, and counts the others.

    Attributes
    ----------
    truncated : int
        Requests whose output was cut at ``max_model_len``.
    rejected : int
        Requests whose prompt leaves no room for a token.
    """

    def __init__(self, config: EngineConfig, too_long: str) -> None:
        self._limit = config.max_model_len
        self._reject = too_long == "reject"
        self._seen = 0
        self._first: tuple[str, int, int] | None = None  # trace, number and prompt of the first
        self.truncated = 0
        self.rejected = 0

    def admit(self, trace: Trace) -> tuple[Trace | None, IntArray, BoolArray]:
        """The admissible requests (None without any), their output tokens, and which they are.

        Raises
        ------
        TraceError
            If a prompt is too long and such prompts are an error.
        """
        admissible = trace.prompt_tokens < self._limit
        run: Trace | None = trace
        if not admissible.all():
            i = int(np.argmax(~admissible))
            if self._first is None:
                self._first = trace.name, self._seen + i, int(trace.prompt_tokens[i])
            self.rejected += int((~admissible).sum())
            if not self._reject:
                self._seen += len(trace)
                raise self.too_long_error()
            run = trace.take(np.flatnonzero(admissible)) if admissible.any() else None
        self._seen += len(trace)
        if run is None:
            return None, np.empty(0, np.int64), admissible
        room = self._limit - run.prompt_tokens
        self.truncated += int((run.output_tokens > room).sum())
        return run, np.minimum(run.output_tokens, room), admissible

    def too_long_error(self) -> TraceError:
        """What to raise if such prompts are an error, or there are no others."""
        assert self._first is not None
        name, i, prompt = self._first
        return TraceError(
            f"{name}: prompt_tokens of request {i} is {prompt} "
            f"({self.rejected} of {self._seen} requests are too long); must be < max_model_len "
            f"{self._limit}: raise --max-model-len, or give --too-long reject to count "
            "such requests as failed, as the server would"
        )

    def notes(self) -> list[str]:
        """What a reader should know."""
        notes = []
        if self.rejected:
            notes.append(
                f"{self.rejected} requests were rejected: prompts of max_model_len or more tokens"
            )
        if self.truncated:
            notes.append(
                f"{self.truncated} outputs were cut where prompt and output reach max_model_len "
                f"{self._limit}"
            )
        return notes


def scenario_of(
    name: str,
    requests: int,
    profile: Profile,
    config: EngineConfig,
    replicas: int,
    router: str,
    seed: int,
    too_long: str,
    frontend: bool,
) -> dict[str, Any]:
    """What was run, under the names of the options."""
    return {
        "trace": name,
        "requests": requests,
        "profile": profile.id,
        "replicas": replicas,
        "router": router,
        "seed": seed,
        "too_long": too_long,
        "frontend": frontend,
        **{name: getattr(config, name) for name in config.__dataclass_fields__},
        "qsim_version": __version__,
    }


def beyond_measured(profile: Profile, config: EngineConfig, peak_running: int) -> list[str]:
    """What the run needed that the profile's measurements do not cover."""
    measured = profile.measured_range
    notes = []
    rows = measured.get("decode_rows")
    if rows and peak_running > rows[-1]:
        notes.append(
            f"up to {peak_running} requests ran in one step; the profile was measured up to "
            f"{rows[-1]}: beyond it step times are extrapolated"
        )
    tokens = measured.get("step_tokens")
    if tokens and config.max_num_batched_tokens > tokens[-1]:
        notes.append(
            f"max_num_batched_tokens is {config.max_num_batched_tokens}; the profile was measured "
            f"up to {tokens[-1]} tokens a step: beyond it step times are extrapolated"
        )
    return notes
