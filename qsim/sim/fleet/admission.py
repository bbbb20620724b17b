"""What has to be settled before a run: settings, and which requests a server would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim import __version__
from qsim.bounds import MAX_REPLICAS, MAX_SEED
from qsim.checks import whole
from qsim.errors import ScenarioError, TraceError
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import Profile
from qsim.sim.fleet.router import ROUTERS
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.sim.scheduler.server_memory import most_model_len
from qsim.traces.trace import Trace

__all__ = ["Admission", "Setup", "resolve"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Setup:
    """A fleet of equal replicas as it is run."""

    profile: Profile
    config: EngineConfig
    replicas: int
    router: str
    seed: int
    too_long: str
    frontend: bool

    def admission(self) -> Admission:
        """What takes its requests."""
        most = most_model_len(self.profile, self.config)
        longest = MeasuredRange.of(self.profile).request_context_tokens
        return Admission(self.config.max_model_len, self.too_long, most, longest)

    @property
    def gpus(self) -> int:
        """Of the whole fleet."""
        return self.replicas * self.profile.identity.tensor_parallel_size

    def scenario(self, name: str, requests: int) -> dict[str, Any]:
        """What is run on a trace, under the names of the options."""
        return {
            "trace": name,
            "requests": requests,
            "profile": self.profile.id,
            "replicas": self.replicas,
            "router": self.router,
            "seed": self.seed,
            "too_long": self.too_long,
            "frontend": self.frontend,
            **{name: getattr(self.config, name) for name in self.config.__dataclass_fields__},
            "qsim_version": __version__,
        }


def resolve(
    profile: Profile | str,
    options: EngineOptions | None,
    replicas: int,
    router: str,
    seed: int,
    too_long: str,
    frontend: bool,
) -> Setup:
    """Check the arguments of a simulation.

    Raises
    ------
    ScenarioError
        If an option is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    """
    from qsim.profiles.lookup import load_profile, version_of

    options = options or EngineOptions()
    if isinstance(profile, str):
        profile = load_profile(profile, options.vllm_version)
    else:
        profile = version_of(profile, options.vllm_version)
    whole("replicas", replicas, 1, MAX_REPLICAS)
    if router not in ROUTERS:
        raise ScenarioError(f"router is {router!r}; must be one of: {', '.join(ROUTERS)}")
    whole("seed", seed, 0, MAX_SEED)
    config = options.resolve(profile)
    return Setup(profile, config, replicas, router, seed, too_long, frontend)


class Admission:
    """Takes the requests that fit ``max_model_len``, whole or part by part, and counts the others.

    Parameters
    ----------
    limit : int
        ``max_model_len``, which a prompt must be shorter than.
    too_long : {"error", "reject"}
        What to do with a longer one.
    most : int, optional
        The longest ``max_model_len`` that model and KV cache allow.
    measured_tokens : int, optional
        Prompt and output of the longest request that was measured.

    Attributes
    ----------
    truncated : int
        Requests whose output was cut at ``max_model_len``.
    rejected : int
        Requests whose prompt leaves no room for a token.
    longer : int
        Requests that are longer than any that was measured.
    """

    def __init__(
        self,
        limit: int,
        too_long: str,
        most: int | None = None,
        measured_tokens: int | None = None,
    ) -> None:
        if too_long not in ("error", "reject"):
            raise ScenarioError(f"too_long is {too_long!r}; must be 'error' or 'reject'")
        self._limit = limit
        self._reject = too_long == "reject"
        self._most = most
        self._seen = 0
        self._first: tuple[str, int, int] | None = None  # trace, number and prompt of the first
        self._measured = measured_tokens
        self.truncated = 0
        self.rejected = 0
        self.longer = 0

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
        output = np.minimum(run.output_tokens, room)
        if self._measured is not None:
            self.longer += int((run.prompt_tokens + output > self._measured).sum())
        return run, output, admissible

    def too_long_error(self) -> TraceError:
        """What to raise if such prompts are an error, or there are no others."""
        assert self._first is not None
        name, i, prompt = self._first
        return TraceError(
            f"{name}: prompt_tokens of request {i} is {prompt} "
            f"({self.rejected} of {self._seen} requests are too long); must be < max_model_len "
            f"{self._limit}: {self._advice(prompt)}"
        )

    def _advice(self, prompt: int) -> str:
        """What to do about a prompt that is too long; nothing that cannot help."""
        most = self._most
        if most is not None and prompt >= most:
            longer = f"model and KV cache hold at most {most} tokens"
        elif most is None:
            longer = "raise --max-model-len"
        else:
            longer = f"raise --max-model-len, to at most {most}"
        if self._reject:
            return f"no request is left to simulate; {longer}"
        joint = ";" if most is not None and prompt >= most else ", or"
        return (
            f"{longer}{joint} give --too-long reject to count such requests as failed, as the "
            "server would"
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
