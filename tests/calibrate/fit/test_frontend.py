"""Late arrivals: worked out by hand, and counted again in a real recording."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.calibrate.fit.frontend import (
    API,
    backlogs_ms,
    fit_frontend,
    late_arrivals_ms,
    modelled_arrivals_s,
)
from qsim.calibrate.recordings.data import Phase, Recording, Requests, Steps
from qsim.calibrate.recordings.read import read_recording
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import ApiTimes, FrontEnd
from tests.calibrate.synthetic import true_profile, write_recording

RECORDINGS = Path(__file__).parents[3] / "recordings"
#: 1 ms for a prompt of 20 tokens, and 2 ms for every prompt; one a 3 ms
FRONTEND = FrontEnd(
    receive_ms=2.0,
    receive_ms_per_1k_prompt_tokens=50.0,
    receive_serial_ms=3.0,
    first_token_ms=1.0,
    first_token_ms_per_1k_prompt_tokens=0.0,
    first_token_ms_per_running=0.0,
    last_token_ms=1.0,
    last_token_ms_per_running=0.0,
)


def _recording(recorded: Recording, waiting: list[int], load: str = "poisson") -> Recording:
    """Five steps, each scheduled before the one before it is updated; the last after a pause."""
    chunks = (((10, 0),), (), (), ((20, 0), (30, 0)), ((40, 0),))
    n = len(chunks)
    zero, count = np.zeros(n), np.zeros(n, dtype=np.int64)
    steps = Steps(
        phase=count,
        schedule_s=np.array([0.000, 0.010, 0.020, 0.030, 0.503]),
        schedule_dur_s=zero,
        launch_start_s=zero,
        launch_end_s=zero,
        sample_start_s=zero,
        sample_end_s=zero,
        gpu_ms=zero,
        update_s=np.array([0.015, 0.025, 0.035, 0.045, 0.510]),
        update_dur_s=zero,
        chunks=chunks,
        num_chunks=np.array([len(c) for c in chunks]),
        pairs=zero,
        prefill_tokens=np.array([sum(t for t, _ in c) for c in chunks]),
        decodes=count,
        decode_context_tokens=count,
        running=count,
        waiting=np.array(waiting),
        kv_usage=zero,
    )
    sent_s = np.array([-0.005, 0.001, 0.0015, 0.002, 0.500])
    requests = Requests(
        phase=count,
        request_id=tuple("abcde"),
        sent_s=sent_s,
        prompt_tokens=np.array([10, 20, 30, 999, 40]),
        output_tokens=np.ones(n, dtype=np.int64),
        first_token_s=sent_s,
        last_token_s=sent_s,
    )
    phases = (Phase("p", "p", load, 0.0, 1.0, float("nan"), "fit"),)
    return replace(recorded, phases=phases, steps=steps, requests=requests)


def test_modelled_arrivals_by_hand(recorded: Recording) -> None:
    q = _recording(recorded, [0] * 5).requests
    got = modelled_arrivals_s(q, np.arange(5), FRONTEND, np.zeros(5))
    # own time: 2.5, 3, 3.5, 51.95 and 4 ms; the third waits its turn
    assert got == pytest.approx([-0.0025, 0.004, 0.007, 0.05395, 0.504])


def test_late_arrivals_by_hand(recorded: Recording) -> None:
    nan = float("nan")
    # not there at 20 ms, although the model says at 4 and 7 ms. The first and the last met an idle
    # engine, and the fourth was never run
    want = [nan, 16.0, 13.0, nan, nan]
    for waiting in ([0, 0, 0, 0, 0], [9, 0, 9, 9, 9]):
        got = late_arrivals_ms(_recording(recorded, waiting), FRONTEND)
        assert got == pytest.approx(want, nan_ok=True), waiting


def test_who_waits_in_the_queue_is_not_late(recorded: Recording) -> None:
    # at 25 ms, the last update before the call that took them, two waited; at 35 ms, the update of
    # the step before, none did any more
    assert np.isnan(late_arrivals_ms(_recording(recorded, [2, 2, 0, 0, 0]), FRONTEND)).all()


def test_a_burst_has_no_late_arrivals(recorded: Recording) -> None:
    assert np.isnan(late_arrivals_ms(_recording(recorded, [0] * 5, "burst"), FRONTEND)).all()


def test_a_simulated_server_is_never_late_until_requests_are_held(recorded: Recording) -> None:
    frontend = true_profile().frontend
    late_ms = late_arrivals_ms(recorded, frontend)
    val = recorded.requests.phase == recorded.phase_index("val_mix")
    assert np.isfinite(late_ms[val]).sum() > 50
    assert np.nanmax(late_ms) <= 1e-5  # recorded times are rounded to ns
    # the same steps, but requests that were sent 30 ms before
    q = recorded.requests
    early = replace(recorded, requests=replace(q, sent_s=q.sent_s - 0.030))
    held_ms = late_arrivals_ms(early, frontend)
    both = np.isfinite(held_ms) & np.isfinite(late_ms)
    assert both[val].sum() > 50
    assert held_ms[both] == pytest.approx(late_ms[both] + 30.0, abs=1e-4)


def test_seven_requests_held_for_up_to_131_ms() -> None:
    """Twelve in all; counted again by a loop over the chunks of the recorded steps."""
    recording = read_recording(RECORDINGS / "llama-3.1-8b--fp8-w8a8-static--2026-11-25")
    p = recording.phase_index("val_moderate")
    frontend, _ = fit_frontend([recording], [frozenset({recording.phase_index("warm"), p})])
    frontend = replace(frontend, api=None)  # which explains two of them
    q, s = recording.requests, recording.steps
    mine = np.flatnonzero(q.phase == p)
    got_ms = late_arrivals_ms(recording, frontend)[mine]

    sent: dict[int, list[int]] = defaultdict(list)
    for i in mine:
        sent[int(q.prompt_tokens[i])].append(int(i))
    begun: dict[int, list[int]] = defaultdict(list)
    steps = np.flatnonzero(s.phase == p).tolist()
    for k in steps:
        for tokens, computed in s.chunks[k]:
            if computed == 0:
                begun[tokens].append(k)
    late: dict[int, float] = {}
    for length, requests in sent.items():
        if len(begun[length]) != len(requests):
            continue  # a prompt in several chunks, or a chunk of that length of another one
        for i, k in zip(requests, begun[length], strict=True):
            updated = [j for j in steps if j < k and s.update_s[j] < s.schedule_s[k]]
            busy = any(s.update_s[j] >= q.sent_s[i] for j in steps if j < k)
            took_ms = frontend.receive_ms_per_1k_prompt_tokens * length / 1e3 + frontend.receive_ms
            excess_ms = (s.schedule_s[k - 1] - q.sent_s[i]) * 1e3 - took_ms
            if busy and updated and s.waiting[updated[-1]] == 0 and excess_ms > 20.0:
                late[i] = excess_ms
    assert sum(len(v) for n, v in sent.items() if len(begun[n]) == len(v)) > 0.95 * len(mine)
    assert len(late) == 12
    assert mine[got_ms > 20.0].tolist() == sorted(late)
    # the loop leaves out that they take turns in the API process, which explains 2 ms at most
    assert got_ms[got_ms > 20.0] == pytest.approx([late[i] for i in sorted(late)], abs=2.0)
    since_s = q.sent_s - q.sent_s[mine].min()
    held = [i for i in late if 12.56 < since_s[i] < 12.64]
    assert len(held) == 7
    assert max(late.values()) == late[min(held)] == pytest.approx(131.0, abs=2.0)

    # in an overloaded engine requests wait in its queue for seconds, and that is not late
    overload = q.phase == recording.phase_index("val_overload")
    assert np.nanmax(late_arrivals_ms(recording, frontend)[overload]) < 20.0


def test_a_process_that_is_never_full_has_no_times(recorded: Recording) -> None:
    frontend, _ = fit_frontend([recorded], [frozenset()])
    assert frontend.api is None


def test_the_times_of_the_api_servers_process_are_found(tmp_path: Path) -> None:
    times = {k: 3 * v for k, v in vars(API).items() if k != "turns"}
    true = ApiTimes(**times, turns=API.turns)
    recording = read_recording(write_recording(tmp_path / "full", api=true, seed=3))
    frontend, _ = fit_frontend([recording], [frozenset()])
    assert frontend.api is not None
    assert frontend.api.token_ms == pytest.approx(true.token_ms, rel=0.2)
    base = true_profile().frontend
    assert frontend.receive_ms == pytest.approx(base.receive_ms, abs=0.2)
    assert frontend.last_token_ms == pytest.approx(base.last_token_ms, abs=0.1)
    # with these times nothing is late that was simulated, without them much is
    assert np.nanmax(late_arrivals_ms(recording, replace(base, api=true))) < 0.1
    assert np.nanmax(late_arrivals_ms(recording, base)) > 1.0


def test_backlogs_by_hand(recorded: Recording) -> None:
    recording = _recording(recorded, [0] * 5)
    s = replace(recording.steps, decodes=np.array([1, 2, 2, 0, 4]))
    api = ApiTimes(0.5, 0.0, 0.0, 0.0, token_ms=6.0, send_ms=0.0, turns=2)
    waits_ms, late_ms = backlogs_ms(replace(recording, steps=s), api)
    # three requests at 1 to 2 ms; steps of 2, 2, 2, 2 and 5 at 15, 25, 35, 45 and 510 ms
    assert waits_ms == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.0], abs=1e-9)
    assert late_ms == pytest.approx([0.0, 2.0, 4.0, 6.0, 0.0], abs=1e-9)
    assert not any(np.any(x) for x in backlogs_ms(recording, None))


def test_the_shipped_times_are_those_of_the_host_that_profiles_are_put_on() -> None:
    api = load_profile("h200_sxm/llama-3.1-8b/bf16", "0.33").frontend.api
    assert api == API
    assert load_profile("h200_sxm/qwen2.5-14b/bf16", "0.33").frontend.api == API  # carried
    assert load_profile("h200_sxm/llama-3.1-8b/bf16", "0.24").frontend.api is None
    # light loads tell the size of a quick host within a half
    recording = read_recording(RECORDINGS / "llama-3.1-8b--fp8-w8a8--2026-11-20")
    frontend, _ = fit_frontend([recording], [frozenset()])
    assert frontend.api is not None
    assert 0.5 <= frontend.api.request_ms / API.request_ms <= 1.5
