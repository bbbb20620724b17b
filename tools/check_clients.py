"""How well clients that wait for answers are predicted: closed loops and sessions of a real server.

    python tools/check_clients.py --profile ID RESULT.json...
    python tools/check_clients.py --repeats RESULT.json...

A result of ``vllm bench serve --max-concurrency N --save-result --save-detailed`` is simulated as
N clients who send its requests, one after the other, as ``qsim simulate --concurrency N`` does. A
JSON list of the turns of sessions is simulated as sessions: an object a turn, with ``session``,
``turn``, ``t`` (when it was sent, s), ``ttft_s``, ``e2e_s``, ``prompt`` and ``output`` (tokens),
and ``usage.prompt_tokens_details.cached_tokens`` where the server tells it. Its first turn is sent
when it was, each further one after the simulated answer and as long as the client then took.

Printed are, measured and simulated and the error: output tokens/s from the first request to the
last token, mean TTFT and TPOT as ``vllm bench serve`` defines them, and for sessions the share of
prompt tokens found in the prefix cache. An ``info.json`` beside a result tells the server's KV
blocks (``facts.num_gpu_blocks``).

With ``--repeats`` a load that was sent to its server twice, ``NAME.json`` and ``NAME-again.json``,
is held against itself: means and medians of TTFT, TPOT and end-to-end latency, the second run over
the first. No simulation can be expected to be closer to one run than the runs are to each other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import qsim
from qsim.errors import QsimError, TraceError
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.traces import Trace, load_trace
from qsim.traces.trace import Turns

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """Requests of clients that waited, and how they fared.

    Attributes
    ----------
    trace : Trace
        In order of sending; sessions have turns.
    concurrency : int, optional
        How many clients sent them, of a closed loop.
    texts : bool
        Whether prompts were texts: those of ``vllm bench serve`` are, those of a session where its
        turns say so (``text``).
    sent_s, ttft_s, e2el_s : float64 arrays, shape (n,)
        In the trace's order.
    cached_tokens : int64 array, shape (n,), optional
        Where the server told.
    """

    name: str
    trace: Trace
    concurrency: int | None
    texts: bool
    sent_s: FloatArray
    ttft_s: FloatArray
    e2el_s: FloatArray
    cached_tokens: npt.NDArray[np.int64] | None

    @property
    def tpot_s(self) -> FloatArray:
        """Of requests with several tokens."""
        tokens = self.trace.output_tokens
        several = tokens > 1
        return (self.e2el_s - self.ttft_s)[several] / (tokens[several] - 1)

    def figures(self) -> dict[str, float]:
        """What was measured."""
        duration_s = float((self.sent_s + self.e2el_s).max() - self.sent_s[0])
        found = {
            "output tokens/s": float(self.trace.output_tokens.sum()) / duration_s,
            "mean TTFT, ms": float(self.ttft_s.mean()) * 1000,
            "mean TPOT, ms": float(self.tpot_s.mean()) * 1000,
        }
        if self.cached_tokens is not None:
            found["prefix hits, %"] = 100 * float(
                self.cached_tokens.sum() / self.trace.prompt_tokens.sum()
            )
        return found


def simulated(run: Run, profile: Profile, blocks: int | None, replay: bool) -> dict[str, float]:
    """The same figures of the simulation; of requests sent as recorded if ``replay``."""
    trace, concurrency = run.trace, run.concurrency
    if replay:
        trace, concurrency = _as_sent(run), None
    options = qsim.EngineOptions(num_gpu_blocks_override=blocks, enable_prefix_caching=True)
    result = qsim.simulate(
        trace, profile, concurrency=concurrency, text_prompts=run.texts, options=options
    )
    summary = result.summary()
    found = {
        "output tokens/s": summary["output_throughput"],
        "mean TTFT, ms": summary["mean_ttft_ms"],
        "mean TPOT, ms": summary["mean_tpot_ms"],
    }
    if run.cached_tokens is not None:
        found["prefix hits, %"] = 100 * float(
            result.cached_tokens.sum() / result.prompt_tokens.sum()
        )
    return found


def _as_sent(run: Run) -> Trace:
    """Every request at its recorded time, whatever became of the one before it."""
    old = run.trace
    return Trace(run.sent_s, old.prompt_tokens, old.output_tokens, name=old.name)


# ------------------------------------------------------------------------------------ reading


def read(path: Path) -> Run:
    """A benchmark's result, or turns of sessions.

    Raises
    ------
    TraceError
        If it is neither.
    """
    try:
        raw = path.read_bytes()
        data = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: {error}") from error
    if isinstance(data, dict) and "input_lens" in data:
        return _benchmark(path, data)
    if isinstance(data, list) and data and all("session" in row for row in data):
        return _sessions(path, data)
    raise TraceError(f"{path}: neither a result of vllm bench serve nor a list of sessions' turns")


def _benchmark(path: Path, data: dict[str, Any]) -> Run:
    if data["failed"]:
        raise TraceError(f"{path}: {data['failed']} requests failed; all must have their answers")
    trace = load_trace(str(path))
    order = np.argsort(np.array(data["start_times"]), kind="stable")
    start_s = np.array(data["start_times"])[order]
    ttft_s = np.array(data["ttfts"])[order]
    e2el_s = ttft_s + np.array([sum(gaps) for gaps in data["itls"]])[order]
    sent_s = start_s - start_s[0]
    return Run(_name(path), trace, data["max_concurrency"], True, sent_s, ttft_s, e2el_s, None)


def _sessions(path: Path, rows: list[dict[str, Any]]) -> Run:
    rows = sorted(rows, key=lambda row: row["t"])
    place = {(row["session"], row["turn"]): i for i, row in enumerate(rows)}
    previous = np.array([place.get((row["session"], row["turn"] - 1), -1) for row in rows])
    sent_s = np.array([row["t"] for row in rows]) - rows[0]["t"]
    e2el_s = np.array([row["e2e_s"] for row in rows])
    waited_s = sent_s - (sent_s + e2el_s)[previous]
    delay_s = np.where(previous >= 0, np.maximum(waited_s, 0.0), 0.0)
    trace = Trace(
        sent_s,
        np.array([row["prompt"] for row in rows]),
        np.array([row["output"] for row in rows]),
        name=path.name,
        turns=Turns(previous, delay_s),
    )
    told = [row["usage"].get("prompt_tokens_details") for row in rows]
    cached = np.array([each["cached_tokens"] for each in told]) if all(told) else None
    ttft_s = np.array([row["ttft_s"] for row in rows])
    texts = all(row.get("text", False) for row in rows)
    return Run(_name(path), trace, None, texts, sent_s, ttft_s, e2el_s, cached)


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def _kv_blocks(path: Path) -> int | None:
    info = path.with_name("info.json")
    return json.loads(info.read_text())["facts"]["num_gpu_blocks"] if info.exists() else None


# ----------------------------------------------------------------------------------- printing


def rows_of(run: Run, profile: Profile, blocks: int | None, replay: bool) -> Iterator[str]:
    """Lines of the table."""
    measured, ours = run.figures(), simulated(run, profile, blocks, replay)
    for name, value in measured.items():
        error = (ours[name] / value - 1) * 100 if value else float("nan")
        yield (
            f"| {run.name} | {len(run.trace):,} | {name} | {value:,.2f} | {ours[name]:,.2f} "
            f"| {error:+.1f}% |"
        )


def repeats(paths: Sequence[Path]) -> Iterator[str]:
    """The table of loads that were sent twice, and how many of its cells are within 5%.

    Raises
    ------
    TraceError
        If none of them was.
    """
    yield "| load | mean TTFT | median | mean TPOT | median | mean E2EL | median |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    changes = []
    for path in paths:
        again = path.with_name(path.name.replace(".json", "-again.json"))
        if not again.exists():
            continue
        first, second = read(path), read(again)
        change = [
            float(statistic(b) / statistic(a) - 1) * 100
            for a, b in (
                (first.ttft_s, second.ttft_s),
                (first.tpot_s, second.tpot_s),
                (first.e2el_s, second.e2el_s),
            )
            for statistic in (np.mean, np.median)
        ]
        changes.append(change)
        name = f"{path.absolute().parent.name}, {first.name}"
        yield f"| {name} | {' | '.join(f'{x:+.1f}%' for x in change)} |"
    if not changes:
        raise TraceError("none of these loads has a second run beside it, NAME-again.json")
    size = np.abs(changes)
    yield ""
    yield (
        f"{size.size} means and medians: half within {np.median(size):.1f}%, "
        f"{np.mean(size <= 5):.0%} within 5%; of TTFT {np.mean(size[:, :2] <= 5):.0%}"
    )


def main() -> int:
    """Print the table; 1 for a result that cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--profile", help="id or path")
    wanted.add_argument("--repeats", action="store_true", help="two runs of a load, side by side")
    parser.add_argument(
        "--num-gpu-blocks-override", type=int, help="instead of what info.json tells"
    )
    parser.add_argument(
        "--at-recorded-times",
        action="store_true",
        help="send every request when it was sent, which tells errors of the server from those of "
        "the clients; prefixes are not known then",
    )
    parser.add_argument(
        "--api-times", type=float, default=1.0, help="times of the API server's process, times this"
    )
    given = parser.parse_args()
    if given.repeats:
        try:
            print("\n".join(repeats(given.results)))
        except QsimError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0
    print("| load | requests | figure | measured | simulated | error |")
    print("|---|---:|---|---:|---:|---:|")
    try:
        profile = load_profile(given.profile)
        front = profile.frontend
        if front.api is not None and given.api_times != 1.0:
            front = replace(front, api=front.api.times(given.api_times))
            profile = replace(profile, frontend=front)
        for path in given.results:
            blocks = given.num_gpu_blocks_override or _kv_blocks(path)
            for line in rows_of(read(path), profile, blocks, given.at_recorded_times):
                print(line)
    except QsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
