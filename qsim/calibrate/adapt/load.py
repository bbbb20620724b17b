"""One load as its client saw it: what was sent when, how long it took, and the energy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.validate.comparison import latencies, statistics
from qsim.calibrate.validate.validation import engine_settings, phase_trace
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

__all__ = ["Load", "Replay", "of_phase", "replay"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Load:
    """A load and what was measured of it.

    Attributes
    ----------
    name : str
    trace : Trace
        Its requests, in order of sending.
    ttft_ms, e2el_ms : array of shape (n,)
        What the client measured.
    energy_j : float or None
        Of the server's GPUs, from the first send to the last token.
    options : EngineOptions
        The server's settings.
    num_gpu_blocks : int or None
        KV blocks of the server; None where only the profile tells.
    text_prompts : bool
        Whether prompts were texts, which the API server tokenized, and not token ids.
    """

    name: str
    trace: Trace
    ttft_ms: FloatArray
    e2el_ms: FloatArray
    energy_j: float | None
    options: EngineOptions
    num_gpu_blocks: int | None = None
    text_prompts: bool = False

    def __len__(self) -> int:
        return len(self.trace)

    def values(self) -> dict[str, FloatArray]:
        """Measured values of single requests by metric."""
        return latencies(self.ttft_ms, self.e2el_ms, self.trace.output_tokens)

    def measured(self) -> dict[str, float]:
        """``mean_ttft_ms`` and so on, and ``energy_j`` where it was measured."""
        found = statistics(self.values())
        if self.energy_j is not None:
            found["energy_j"] = self.energy_j
        return found


@dataclass(frozen=True, eq=False)
class Replay:
    """A load through a profile: the same as measured, simulated."""

    ttft_ms: FloatArray
    e2el_ms: FloatArray
    energy_j: float

    def statistics(self, load: Load) -> dict[str, float]:
        """As :meth:`Load.measured`, of the same quantities."""
        found = statistics(latencies(self.ttft_ms, self.e2el_ms, load.trace.output_tokens))
        if load.energy_j is not None:
            found["energy_j"] = self.energy_j
        return found


def of_phase(recording: Recording, label: str) -> Load:
    """A phase of a recording: what its client saw and its energy, and nothing else of it.

    Raises
    ------
    RecordingError
        If there is no such phase, or it has no requests.
    """
    trace = phase_trace(recording, label)
    q = recording.requests
    index = np.flatnonzero(q.phase == recording.phase_index(label))
    index = index[np.argsort(q.sent_s[index], kind="stable")]
    energy_j = recording.phases[recording.phase_index(label)].energy_j
    return Load(
        name=f"{recording.name}: {label}",
        trace=trace,
        ttft_ms=(q.first_token_s[index] - q.sent_s[index]) * 1e3,
        e2el_ms=(q.last_token_s[index] - q.sent_s[index]) * 1e3,
        energy_j=float(energy_j) if np.isfinite(energy_j) else None,
        options=engine_settings(recording),
        num_gpu_blocks=recording.server.num_gpu_blocks,
    )


def replay(load: Load, profile: Profile) -> Replay:
    """Simulate a load on one server of ``profile``, under the load's settings."""
    if load.num_gpu_blocks is not None:
        memory = replace(profile.memory, num_gpu_blocks=load.num_gpu_blocks)
        profile = replace(profile, memory=memory)
    result = simulate(load.trace, profile, options=load.options, text_prompts=load.text_prompts)
    return Replay(
        ttft_ms=np.asarray(result.ttft_ms, dtype=np.float64),
        e2el_ms=np.asarray(result.e2el_ms, dtype=np.float64),
        energy_j=float(sum(r["energy_j"] for r in result.replica_stats)),
    )
