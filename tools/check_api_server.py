"""How well the model of the API server's process tells when requests reach the engine.

    python tools/check_api_server.py measurements/api-server/NAME.json.gz [--size 1.7]
    python tools/check_api_server.py --bursts RECORDING...

A file of ``measurements/api-server`` holds what was traced inside a vLLM server: of each load, when
every request had been received and when the engine's input thread had taken it in (ms), its prompt
(tokens), and when the engine had its results (ms) and of how many requests. Printed are, by load,
the mean time between, measured and with ``--size`` times the shipped times of the process, and the
correlation request by request. ``--bursts`` prints of recordings when the engine began the first of
the requests that were sent at once, and when it is ready with the front end that is fitted to the
recording (bursts take no part in that).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsim.calibrate.fit.frontend import API, fit_frontend, match_requests
from qsim.calibrate.recordings.read import read_recording
from qsim.errors import QsimError
from qsim.profiles.schema import ApiTimes
from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.engine.timing import PS_PER_MS
from qsim.sim.scheduler.request import Request

#: of the server that was traced: a request alone, ms, and ms per 1,000 prompt tokens; and what lies
#: between two requests beside the process, at size 1
RECEIVE_MS, RECEIVE_MS_PER_1K, SERIAL_MS = 2.6, 0.5, 0.15


def predicted_ms(load: dict[str, Any], api: ApiTimes, serial_ms: float) -> list[float]:
    """How long each request takes to the engine, ms."""
    process = ApiProcess(api, round(serial_ms * PS_PER_MS), load["texts"])
    requests, results = load["requests"], load["results"]
    events = [(at, 0, i) for i, (at, _) in enumerate(results)]
    events += [(received, 1, i) for i, (received, _, _) in enumerate(requests)]
    through = []
    for at_ms, kind, i in sorted(events):
        at_ps = round(at_ms * PS_PER_MS)
        if kind == 0:
            through += process.advance(at_ps - 1)
            process.result(at_ps, results[i][1])
        else:
            prompt = requests[i][2]
            alone_ms = RECEIVE_MS + RECEIVE_MS_PER_1K * prompt / 1e3
            process.enter(Request(i, prompt, 1), at_ps, round(alone_ms * PS_PER_MS))
    through += process.advance(1 << 80)
    ready = {request.index: ready_ps / PS_PER_MS for ready_ps, request in through}
    return [ready[i] - r[0] for i, r in enumerate(requests)]


def trace_table(path: Path, size: float) -> list[str]:
    """Lines of a table, a load each."""
    lines = [
        "| load | requests | measured, ms | predicted, ms | correlation |",
        "|---|---|---|---|---|",
    ]
    for name, load in json.loads(gzip.decompress(path.read_bytes()))["loads"].items():
        took = np.array([there - received for received, there, _ in load["requests"]])
        got = np.array(predicted_ms(load, API.times(size), SERIAL_MS * size))
        r = np.corrcoef(took, got)[0, 1]
        lines.append(f"| {name} | {len(took)} | {took.mean():.1f} | {got.mean():.1f} | {r:.2f} |")
    return lines


def burst_lines(path: Path) -> list[str]:
    """Of each burst of a recording: when the first was begun, and when it is ready."""
    recording = read_recording(path)
    s, q = recording.steps, recording.requests
    first = match_requests(recording).first_chunk
    frontend, _ = fit_frontend([recording], [frozenset()])
    lines = []
    for i, phase in enumerate(recording.phases):
        mine = np.flatnonzero((q.phase == i) & (first >= 0))
        if phase.load != "burst" or phase.label == "warm" or not len(mine):
            continue
        sent_s = q.sent_s[mine].min()
        begun_ms = (s.schedule_s[first[mine]].min() - sent_s) * 1e3
        process = ApiProcess(frontend.api or API, round(frontend.receive_serial_ms * PS_PER_MS))
        for j in mine[np.argsort(q.sent_s[mine], kind="stable")].tolist():
            prompt = int(q.prompt_tokens[j])
            alone_ms = frontend.receive_ms + frontend.receive_ms_per_1k_prompt_tokens * prompt / 1e3
            at_ps = round((q.sent_s[j] - sent_s) * 1e3 * PS_PER_MS)
            process.enter(Request(j, prompt, 1), at_ps, round(alone_ms * PS_PER_MS))
        ready_ms = process.advance(1 << 80)[0][0] / PS_PER_MS
        lines.append(
            f"{recording.name} {phase.label}: {len(mine)} requests, the first begun after "
            f"{begun_ms:.0f} ms, ready after {ready_ms:.0f} ms"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--size", type=float, default=1.7)
    parser.add_argument("--bursts", action="store_true")
    args = parser.parse_args(argv)
    try:
        for path in args.paths:
            lines = burst_lines(path) if args.bursts else trace_table(path, args.size)
            print("\n".join(lines), flush=True)
    except (OSError, ValueError, KeyError, QsimError) as error:
        print(f"Error: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
