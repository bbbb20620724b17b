"""``load_trace``: a file in any format that qsim reads, or a preset, as one Trace."""

from __future__ import annotations

import difflib
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

from qsim.errors import TraceError
from qsim.traces.trace import Trace

__all__ = ["load_trace", "shape"]


def load_trace(
    source: str | PathLike[str],
    *,
    format: str | None = None,
    sort: bool = False,
    seed: int = 0,
) -> Trace:
    """Read a trace file, or draw a preset.

    Parameters
    ----------
    source : str or path
        A path (gzip or not), or a preset with optional parameters, such as ``azure-conv-2023`` or
        ``azure-conv-2023:duration=600,rate=20,seed=1``.
    format : str, optional
        The file's format; recognised by what the file holds by default.
    sort : bool
        Put the requests in order of arrival, where the default is to refuse a file that is not.
    seed : int
        For presets and for formats whose reading is a draw; a preset's ``seed=`` goes first.

    Returns
    -------
    Trace
        With ``meta["format"]``, and ``meta["skipped"]``: how many rows each rule left out.

    Raises
    ------
    TraceError
        If there is no such file or preset, or the file is malformed (the message names file,
        line, column and value), or no request is left.
    """
    text = fspath(source)
    path = Path(text)
    params: dict[str, str] = {}
    if not path.exists():
        text, params = split_params(text)
        path = Path(text)
    if path.exists():
        return _load_file(path, format, sort, seed, params)
    from qsim.traces.presets import PRESETS, resolve_preset
    from qsim.traces.synth import synthesize

    if text not in PRESETS:
        near = difflib.get_close_matches(text, PRESETS, n=1, cutoff=0.5)
        raise TraceError(
            f"{text}: no such file, and no preset of that name"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" The presets are {', '.join(PRESETS)}"
        )
    if format is not None:
        raise TraceError(f"{text}: format is {format!r}, but a preset has none; leave it out")
    asked = resolve_preset(text, params)
    trace = synthesize(asked.workload, asked.span, seed if asked.seed is None else asked.seed)
    return replace(trace, meta={**trace.meta, "params": dict(params)})


def split_params(text: str) -> tuple[str, dict[str, str]]:
    """``"name:key=value,key=value"`` as the name and the parameters.

    Raises
    ------
    TraceError
        If what follows the colon is not of that form.
    """
    name, colon, rest = text.partition(":")
    if not colon or "=" not in rest:
        return text, {}
    params: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not equals or not key or not value:
            raise TraceError(
                f"{text}: {part!r} is not key=value; parameters look like "
                f"{name}:duration=600,rate=20"
            )
        if key in params:
            raise TraceError(f"{text}: {key} is given twice")
        params[key] = value
    return name, params


def _load_file(
    path: Path, format: str | None, sort: bool, seed: int, params: dict[str, str]
) -> Trace:
    from qsim.traces.formats import ReadOptions, format_named, recognise
    from qsim.traces.source import Source

    source = Source(path)
    if not source.is_dir and not source.head.strip():
        raise TraceError(f"{path}: the file is empty; a trace needs at least one request")
    chosen = recognise(source) if format is None else format_named(format)
    unknown = [key for key in params if key not in chosen.params]
    if unknown:
        allowed = ", ".join(chosen.params) or "none"
        raise TraceError(
            f"{path}: parameter {unknown[0]!r} is unknown for the format {chosen.name}; "
            f"its parameters: {allowed}"
        )
    return chosen.read(source, ReadOptions(sort=sort, seed=seed, params=params))


def shape(
    trace: Trace,
    start_s: float | None = None,
    end_s: float | None = None,
    speed: float | None = None,
    head: int | None = None,
) -> Trace:
    """Cut and scale a trace: first the slice, then the speed, then the head.

    Parameters
    ----------
    trace : Trace
        What to cut; it is not changed.
    start_s, end_s : float, optional
        Keep arrivals in [start_s, end_s), on the trace's own clock; times then count from
        ``start_s``.
    speed : float, optional
        Let the requests arrive so many times as fast.
    head : int, optional
        Keep the first so many requests.

    Raises
    ------
    TraceError
        If no request is left or a value is not allowed.
    """
    if start_s is not None or end_s is not None:
        trace = trace.slice(start_s or 0.0, float("inf") if end_s is None else end_s)
    if speed is not None:
        trace = trace.speed(speed)
    if head is not None:
        trace = trace.head(head)
    return trace
