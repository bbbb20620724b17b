"""What was measured on a server, from recordings that come with the source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.measured import measured_row
from qsim.calibrate.recordings.read import read_recording

RECORDINGS = Path(__file__).parents[3] / "recordings"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return read_recording(RECORDINGS / "llama-3.1-8b--int8-w8a8--2026-11-20")


def with_power(recording: Recording, energy_j: np.ndarray) -> Recording:
    return replace(recording, power=replace(recording.power, energy_j=energy_j))


def test_energy_of_a_constant_power(recording: Recording) -> None:
    """At 500 W a token costs 500 W times the time that it takes."""
    row = measured_row(with_power(recording, 500.0 * recording.power.t_s))
    s = recording.steps
    ladder = next(i for i, p in enumerate(recording.phases) if p.label == "ladder")
    of_ladder = np.flatnonzero(s.phase == ladder)
    alone = of_ladder[of_ladder > of_ladder[s.num_chunks[of_ladder] > 0][-1]]
    assert s.decodes[alone].max() == 576
    alone = alone[s.decodes[alone] <= 512]
    tokens = s.decodes[alone[1:]].sum()
    seconds = s.update_s[alone[-1]] - s.update_s[alone[0]]
    assert row.decode_mj_per_token == pytest.approx(5e5 * seconds / tokens, rel=1e-4)
    assert row.decode_mean_batch == pytest.approx(tokens / (len(alone) - 1), abs=0.06)
    seconds, tokens = 0.0, 0
    row_s, row_tokens = 0.0, 0
    for k in range(1, len(s.phase)):
        large = [
            s.phase[j] == s.phase[k] and s.decodes[j] == 0 and s.prefill_tokens[j] >= 4096
            for j in (k - 1, k)
        ]
        if all(large) and recording.phases[s.phase[k]].label != "warm":
            row_s += s.update_s[k] - s.update_s[k - 1]
            row_tokens += s.prefill_tokens[k]
        else:
            if row_s >= 1.0:
                seconds, tokens = seconds + row_s, tokens + row_tokens
            row_s, row_tokens = 0.0, 0
    assert seconds > 3.0
    assert row.prefill_mj_per_token == pytest.approx(5e5 * seconds / tokens, rel=1e-4)


def test_energy_counts_only_while_such_steps_run(recording: Recording) -> None:
    s = recording.steps
    last = max(p.end_s for p in recording.phases if p.label in ("ladder", "ctx1k"))
    first = measured_row(with_power(recording, 500.0 * recording.power.t_s))
    after = np.where(recording.power.t_s > last, 1.0, 0.0).cumsum() * 1e3  # burnt after the ladder
    ours = measured_row(with_power(recording, 500.0 * recording.power.t_s + after))
    assert ours.decode_mj_per_token == first.decode_mj_per_token
    assert ours.prefill_mj_per_token != first.prefill_mj_per_token
    assert s.update_s[-1] > last


def test_too_short_for_an_energy(recording: Recording) -> None:
    """Without a burst and without rows of prefill steps there is nothing to take energy from."""
    phases = tuple(replace(p, load="poisson") for p in recording.phases)
    chunked = replace(recording.steps, decodes=np.maximum(recording.steps.decodes, 1))
    row = measured_row(replace(recording, phases=phases, steps=chunked))
    assert row.decode_mj_per_token is None
    assert row.decode_mean_batch is None
    assert row.prefill_mj_per_token is None
    assert row.joules_per_output_token is not None
