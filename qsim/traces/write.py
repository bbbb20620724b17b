"""Writing traces: canonical CSV and Parquet, Mooncake's JSON lines, vLLM bench's timed_trace."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import IO, Any

import numpy as np

from qsim.errors import MissingExtraError, TraceError
from qsim.files import atomic_path
from qsim.traces.trace import HashIds, Trace, Turns

MOONCAKE_BLOCK_TOKENS = 512
#: The formats, and the file endings that choose them.
WRITE_FORMATS: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".csv.gz"),
    "parquet": (".parquet",),
    "mooncake": (".jsonl", ".jsonl.gz"),
    "timed-trace": (),
}


def format_for(path: Path, format: str | None = None) -> str:
    """The format to write, by name or by the ending of the path.

    Raises
    ------
    TraceError
        If neither says which.
    """
    if format is not None:
        if format not in WRITE_FORMATS:
            raise TraceError(f"format is {format!r}; must be one of {', '.join(WRITE_FORMATS)}")
        return format
    for name, endings in WRITE_FORMATS.items():
        if path.name.endswith(endings) and endings:
            return name
    known = ", ".join(e for endings in WRITE_FORMATS.values() for e in endings)
    raise TraceError(
        f"{path}: the ending does not say what to write; end in {known}, or give the format "
        f"({', '.join(WRITE_FORMATS)})"
    )


def write_trace(trace: Trace, path: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Write a trace; the file appears whole or not at all.

    CSV and Parquet give back the same trace, bit for bit. Mooncake's format rounds times to 1 ms.
    The format (``csv``, ``parquet``, ``mooncake`` or ``timed-trace``) is told by the ending of the
    path unless it is given; ``.gz`` compresses.

    Raises
    ------
    TraceError
        If the format cannot hold the trace, or the file cannot be written.
    """
    write_chunks([trace], path, format=format)


def write_chunks(
    chunks: Iterable[Trace], path: str | os.PathLike[str], *, format: str | None = None
) -> int:
    """Write a trace that comes in chunks (see ``iter_chunks``), one chunk in memory at a time.

    Returns
    -------
    int
        How many requests were written.

    Raises
    ------
    TraceError
        As ``write_trace``.
    """
    target = Path(path)
    name = format_for(target, format)
    count = 0

    def counted() -> Iterator[Trace]:
        nonlocal count
        for chunk in chunks:
            count += len(chunk)
            yield chunk

    with _renamed(target) as raw:
        if name == "parquet":
            _write_parquet(counted(), raw)
        else:
            with _text(raw, compress=target.name.endswith(".gz")) as stream:
                _TEXT_WRITERS[name](counted(), stream, target)
        if count == 0:
            raise TraceError(f"{target}: no request to write")
    return count


@contextmanager
def _renamed(target: Path) -> Iterator[IO[bytes]]:
    try:
        with atomic_path(target) as temporary, temporary.open("wb") as stream:
            yield stream
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _text(raw: IO[bytes], *, compress: bool) -> Iterator[IO[str]]:
    # No name and no time in the gzip header: the same trace gives the same bytes.
    inner: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if compress else raw
    text = io.TextIOWrapper(inner, encoding="utf-8", newline="\n")
    yield text
    text.flush()
    text.detach()
    if compress:
        inner.close()


def _columns(chunk: Trace) -> dict[str, Any]:
    """Columns of the canonical format: arrays, lists (None: empty) and prefix ids."""
    columns: dict[str, Any] = {
        name: getattr(chunk, name) for name in ("arrival_s", "prompt_tokens", "output_tokens")
    }
    if chunk.hash_ids is not None:
        columns["hash_ids"] = chunk.hash_ids
        columns["hash_block_tokens"] = np.full(len(chunk), chunk.hash_ids.block_tokens)
    if chunk.turns is not None:
        columns["session_id"], columns["delay_s"] = _sessions(chunk.turns)
    if chunk.priority is not None:
        columns["priority"] = chunk.priority
    if chunk.timeout_s is not None:
        columns["timeout_s"] = [None if t == inf else t for t in chunk.timeout_s.tolist()]
    return columns


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, HashIds):
        return (" ".join(map(str, values[i].tolist())) for i in range(len(values)))
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    return ("" if value is None else repr(value) for value in listed)


def _write_csv(chunks: Iterator[Trace], stream: IO[str], target: Path) -> None:
    header = False
    for chunk in chunks:
        columns = _columns(chunk)
        if not header:
            stream.write(",".join(columns) + "\n")
            header = True
        texts = map(_texts, columns.values())
        stream.writelines(",".join(row) + "\n" for row in zip(*texts, strict=True))


def _sessions(turns: Turns) -> tuple[list[int], list[float | None]]:
    """A number for each request's session, and the delay of the turns that wait."""
    sessions: list[int] = []
    for i, previous in enumerate(turns.previous.tolist()):
        sessions.append(i if previous < 0 else sessions[previous])
    waits = (turns.previous >= 0).tolist()
    delays = [d if w else None for d, w in zip(turns.delay_s.tolist(), waits, strict=True)]
    return sessions, delays


def _write_mooncake(chunks: Iterator[Trace], stream: IO[str], target: Path) -> None:
    for chunk in chunks:
        ids = chunk.hash_ids
        if ids is None:
            raise TraceError(
                f"{target}: Mooncake's format needs prefix ids, and {chunk.name} has none; write "
                ".csv or .parquet, or timed-trace, which gives every request ids of its own"
            )
        if ids.block_tokens != MOONCAKE_BLOCK_TOKENS:
            raise TraceError(
                f"{target}: the prefix ids are of {ids.block_tokens}-token blocks, Mooncake's of "
                f"{MOONCAKE_BLOCK_TOKENS}; write .csv or .parquet, or timed-trace"
            )
        milliseconds = np.rint(chunk.arrival_s * 1000).astype(np.int64)
        _write_lines(stream, chunk, ids, milliseconds.tolist())


def _write_timed(chunks: Iterator[Trace], stream: IO[str], target: Path) -> None:
    next_id = 0
    for chunk in chunks:
        if chunk.turns is not None:
            raise TraceError(
                f"{target}: vLLM's timed_trace has no sessions, and later turns of {chunk.name} "
                "wait for answers; give :turns=open after the path, or write .csv or .parquet"
            )
        ids = chunk.hash_ids
        if ids is None:
            # vLLM builds the prompt from the ids alone, so each request gets ids of its own.
            blocks = -(-chunk.prompt_tokens // MOONCAKE_BLOCK_TOKENS)
            offsets = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
            ids = HashIds(next_id + np.arange(offsets[-1]), offsets, MOONCAKE_BLOCK_TOKENS)
            next_id += int(offsets[-1])
        _write_lines(stream, chunk, ids, chunk.arrival_s.tolist())


def _write_lines(
    stream: IO[str], chunk: Trace, ids: HashIds, timestamps: list[float] | list[int]
) -> None:
    lengths = zip(chunk.prompt_tokens.tolist(), chunk.output_tokens.tolist(), strict=True)
    sessions, delays = ([], []) if chunk.turns is None else _sessions(chunk.turns)
    for i, (time, (prompt, output)) in enumerate(zip(timestamps, lengths, strict=True)):
        row: dict[str, Any] = {"timestamp": time}
        if sessions:
            delay_s = delays[i]
            row = {"session_id": sessions[i]}
            row |= {"timestamp": time} if delay_s is None else {"delay": round(1000 * delay_s, 6)}
        row |= {
            "input_length": prompt,
            "output_length": output,
            "hash_ids": ids[i].tolist(),
        }
        if chunk.priority is not None:
            row["priority"] = -int(chunk.priority[i])  # as Dynamo reads it: the larger goes first
        if chunk.timeout_s is not None and chunk.timeout_s[i] < inf:
            row["timeout_s"] = float(chunk.timeout_s[i])
        stream.write(json.dumps(row) + "\n")


_TEXT_WRITERS: dict[str, Callable[[Iterator[Trace], IO[str], Path], None]] = {
    "csv": _write_csv,
    "mooncake": _write_mooncake,
    "timed-trace": _write_timed,
}


def _write_parquet(chunks: Iterator[Trace], raw: IO[bytes]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "writing a Parquet trace") from None
    writer: Any = None
    for chunk in chunks:
        columns = _columns(chunk)
        for name, values in columns.items():
            if isinstance(values, HashIds):
                columns[name] = pa.LargeListArray.from_arrays(values.offsets, values.values)
            elif name in ("delay_s", "timeout_s"):
                columns[name] = pa.array(values, pa.float64())
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(raw, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
