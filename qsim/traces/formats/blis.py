"""BLIS's TraceV2 (CSV): what its simulator (inference-sim) observes, generates and replays.

The columns are those of ``traceV2Columns`` in inference-sim's ``sim/workload/tracev2.go``, and what
they mean is as its ``replay.go`` reads them: a request is sent at ``send_time_us``, or at
``arrival_time_us`` where that is 0; requests of a ``prefix_group`` begin with the same
``prefix_length`` tokens, which ``input_tokens`` do not count and ``server_input_tokens`` (what the
server reported, 0 if it was none) do. ``vllm_priority`` is vLLM's; ``deadline_us`` is a moment on
the clock of the arrivals, 0 for none. The header, which is a YAML file of its own, is not read.
"""

from __future__ import annotations

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions, whole_param
from qsim.traces.prefix_ids import KV_BLOCK_TOKENS, prefix_id
from qsim.traces.reading.build import TraceBuilder
from qsim.traces.reading.columns import is_json, is_parquet, names_of
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import Kind, Rows, read_csv
from qsim.traces.trace import Trace

WHAT = "CSV of BLIS, TraceV2 (request_id,...,prefix_group,...,input_tokens,...,arrival_time_us,...)"
PARAMS = {
    "warmup": "leave out so many requests from the beginning (warm_up_requests of the header)"
}
_NEEDED = ("request_id", "prefix_group", "input_tokens", "output_tokens", "arrival_time_us")
_KINDS: dict[str, Kind] = {
    "arrival_time_us": "stamp",
    "send_time_us": "stamp",
    "input_tokens": "count",
    "output_tokens": "count",
    "server_input_tokens": "count",
    "prefix_length": "count",
    "prefix_group": "text",
    "status": "text",
    "vllm_priority": "count",
    "deadline_us": "stamp",
    "session_id": "text",
}


def recognise(source: Source) -> bool:
    """Whether TraceV2's columns are there."""
    if source.is_dir or is_json(source) or is_parquet(source):
        return False
    return set(_NEEDED) <= set(names_of(source))


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a trace in order of its times of sending.

    Requests whose status is neither empty nor ``ok`` have no whole answer; they are skipped and
    counted.
    """
    return _Reader(source, options).read()


class _Reader:
    """Adds the rows of one file to a builder."""

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self._source = source
        names = names_of(source)
        missing = [n for n in _NEEDED if n not in names]
        if missing:
            raise TraceError(
                f"{source.path}: no column {missing[0]!r}; the columns are {', '.join(names)[:500]}"
            )
        self._columns = [n for n in _KINDS if n in names]
        self._wanted = [(names.index(n), _KINDS[n]) for n in self._columns]
        self._warmup = whole_param(source, options, "warmup", 0) or 0
        self._builder = TraceBuilder(source, "blis", sort=True, absolute=True, ticks_per_s=10**6)
        self._builder.columns = {
            "arrival": "send_time_us or arrival_time_us (us)",
            "prompt": "server_input_tokens or input_tokens + prefix_length",
            "output": "output_tokens",
        }
        for role, name in (("priority", "vllm_priority"), ("timeout", "deadline_us")):
            if name in names:
                self._builder.columns[role] = name
        self._sessions = False

    def read(self) -> Trace:
        for rows in read_csv(self._source, self._wanted):
            self._add(rows)
        if self._sessions:
            self._builder.notes.append(
                "rounds of sessions are sent at their recorded times: the trace does not say how "
                "long clients thought"
            )
        return self._builder.build()

    def _ints(self, rows: Rows, name: str) -> IntArray:
        if name not in self._columns:
            return np.zeros(len(rows), np.int64)
        at = self._columns.index(name)
        if _KINDS[name] == "stamp":
            return rows.whole(at, "a whole number of microseconds")
        return rows.ints(at)

    def _texts(self, rows: Rows, name: str) -> list[str]:
        if name not in self._columns:
            return [""] * len(rows)
        return [text.strip() for text in rows.texts(self._columns.index(name))]

    def _add(self, rows: Rows) -> None:
        builder = self._builder
        if self._warmup:
            left_out = min(self._warmup, len(rows))
            self._warmup -= left_out
            builder.skip("warm-up", left_out)
            rows = rows.take(np.arange(left_out, len(rows)))
        status = np.array([s.lower() for s in self._texts(rows, "status")], object)
        good = (status == "") | (status == "ok")
        for kind in sorted(set(status[~good].tolist())):
            builder.skip(f"status {kind[:40]}", int((status == kind).sum()))
        rows = rows.take(good)
        groups = self._texts(rows, "prefix_group")
        shared = np.where([bool(g) for g in groups], self._ints(rows, "prefix_length"), 0)
        server = self._ints(rows, "server_input_tokens")
        prompt = np.where(server > 0, server, self._ints(rows, "input_tokens") + shared)
        output = self._ints(rows, "output_tokens")
        keep = (prompt > 0) & (output > 0)
        builder.skip("no prompt token", int(((prompt <= 0) & (output > 0)).sum()))
        builder.skip("no output token", int((output <= 0).sum()))
        if not keep.any():
            return
        kept = np.flatnonzero(keep)
        rows, prompt, output, shared = rows.take(keep), prompt[keep], output[keep], shared[keep]
        sent, arrival = self._ints(rows, "send_time_us"), self._ints(rows, "arrival_time_us")
        times = np.where(sent > 0, sent, arrival)
        priority = self._ints(rows, "vllm_priority") if "vllm_priority" in self._columns else None
        self._sessions = self._sessions or any(self._texts(rows, "session_id"))
        builder.add(
            rows.number,
            times,
            prompt,
            output,
            column="arrival_time_us",
            priority=priority,
            timeout_s=self._timeout_s(rows, times),
        )
        shared = np.minimum(shared, prompt)
        for i, tokens in zip(kept.tolist(), shared.tolist(), strict=True):
            blocks = tokens // KV_BLOCK_TOKENS
            if blocks:
                builder.block_tokens = KV_BLOCK_TOKENS
                builder.columns["hash_ids"] = "prefix_group (its prefix_length tokens)"
            builder.add_hash_ids([prefix_id(f"{groups[i]}\n{k}") for k in range(blocks)])

    def _timeout_s(self, rows: Rows, times: IntArray) -> FloatArray | None:
        if "deadline_us" not in self._columns:
            return None
        deadline = self._ints(rows, "deadline_us")
        wrong = (deadline != 0) & (deadline <= times)
        if wrong.any():
            rows.fail(
                int(np.argmax(wrong)),
                self._columns.index("deadline_us"),
                "a moment after the request is sent (0: no deadline)",
            )
        return np.where(deadline == 0, np.inf, (deadline - times) / 1e6)
