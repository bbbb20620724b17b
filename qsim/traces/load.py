"""``load_trace``: a file in any format that qsim reads, or a preset, as one Trace."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike, fspath
from os.path import exists  # False for a text too long to be a path
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.bounds import MAX_SEED
from qsim.checks import whole
from qsim.errors import TraceError
from qsim.traces.reshape import Reshaping, merge_all
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.traces.formats import Format, ReadOptions
    from qsim.traces.reading.source import Source
    from qsim.traces.synth.presets import PresetRequest


def load_trace(
    source: str | PathLike[str],
    *,
    format: str | None = None,
    sort: bool = False,
    seed: int = 0,
    columns: str | None = None,
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
    columns : str, optional
        Which column of a table is what, such as
        ``arrival=start_time[unix_ms],prompt=usage.prompt_tokens,output=usage.completion_tokens``.

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
    name, params = named(source)
    if exists(name):
        from qsim.traces.reading.source import Source

        file = Source(Path(name))
        chosen, options = opened(file, format, sort, seed, params, columns)
        return chosen.read(file, options)
    from qsim.traces.synth.synthesize import synthesize

    asked = preset_request(name, params, format, columns, seed)
    trace = synthesize(asked.workload, asked.span, asked.seed)
    return replace(trace, meta={**trace.meta, "params": dict(params)})


def iter_preset(source: str, *, seed: int = 0) -> Iterator[Trace]:
    """Draw a preset chunk by chunk: the rows that ``load_trace`` gives, in bounded memory.

    ``source`` and ``seed`` are as for ``load_trace``.

    Yields
    ------
    Trace
        At most 65,536 requests each; arrival times go on from chunk to chunk.

    Raises
    ------
    TraceError
        If the preset or a parameter is unknown.
    """
    from qsim.traces.synth.synthesize import iter_chunks

    asked = preset_request(*split_params(source), seed=seed)
    return iter_chunks(asked.workload, asked.span, asked.seed)


def preset_names() -> tuple[str, ...]:
    """The presets that ``load_trace`` knows."""
    from qsim.traces.synth.presets import PRESETS

    return PRESETS


def preset_request(
    name: str,
    params: dict[str, str],
    format: str | None = None,
    columns: str | None = None,
    seed: int = 0,
) -> PresetRequest:
    """A preset with its parameters, resolved; ``seed`` is for those that do not say it.

    Raises
    ------
    TraceError
        If there is none of that name, a parameter is not allowed, or a format or columns are given.
    """
    from qsim.traces.synth.presets import resolve_preset

    names = preset_names()
    if format is not None and name in names:
        raise TraceError(f"{name}: format is {format!r}, but a preset has none; leave it out")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TraceError(
            f"{name}: no such file, and no preset of that name{hint} (the presets are "
            f"{', '.join(names)})"
        )
    asked = resolve_preset(name, params, seed)
    if columns is not None:
        raise TraceError(f"{name}: --columns is {columns!r}, but a preset has no columns")
    return asked


def named(source: str | PathLike[str]) -> tuple[str, dict[str, str]]:
    """The path of a file, or the name of a preset, and the parameters behind it."""
    text = fspath(source)
    return (text, {}) if exists(text) else split_params(text)


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


def opened(
    source: Source,
    format: str | None,
    sort: bool,
    seed: int,
    params: dict[str, str],
    columns: str | None = None,
) -> tuple[Format, ReadOptions]:
    """The format of a file, recognised unless it is given, and how to read it.

    Raises
    ------
    TraceError
        If the file is empty, its format is not known, or a parameter is unknown for it.
    """
    from qsim.traces.formats import ReadOptions, format_named, recognise
    from qsim.traces.reading.columns import parse_columns

    path = source.path
    if not source.is_dir and not source.head.strip():
        raise TraceError(f"{path}: the file is empty; a trace needs at least one request")
    chosen = recognise(source, columns is not None) if format is None else format_named(format)
    if columns is not None and chosen.name != "table":
        raise TraceError(
            f"{path}: --columns says what the columns of a table are, and the format is given as "
            f"{chosen.name}; leave one of them out"
        )
    unknown = [key for key in params if key not in chosen.params]
    if unknown:
        allowed = ", ".join(chosen.params) or "none"
        raise TraceError(
            f"{path}: parameter {unknown[0]!r} is unknown for the format {chosen.name}; "
            f"its parameters: {allowed}"
        )
    given = {} if columns is None else parse_columns(columns)
    whole("seed", seed, 0, MAX_SEED)
    return chosen, ReadOptions(sort=sort, seed=seed, params=params, columns=given)


def shape(
    trace: Trace,
    start_s: float | None = None,
    end_s: float | None = None,
    speed: float | None = None,
    head: int | None = None,
    *,
    seed: int = 0,
    **others: Any,
) -> Trace:
    """Cut and scale a trace: the slice, what :class:`Reshaping` has besides, speed, head.

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
    seed : int
        Of the sample.
    **others
        ``sample``, ``scale_prompt``, ``scale_output`` and ``shared_prefix``, as
        :class:`qsim.traces.reshape.Reshaping` has them.

    Raises
    ------
    TraceError
        If no request is left or a value is not allowed.
    """
    asked = Reshaping(start=start_s, end=end_s, speed=speed, head=head, **others)
    return asked.apply(trace, seed)


def load_reshaped(
    trace: Trace | str,
    asked: Reshaping,
    others: Iterable[Trace | str] = (),
    *,
    format: str | None = None,
    columns: str | None = None,
    sort: bool = False,
    seed: int = 0,
    tell: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> Trace:
    """Read a trace and those that are merged into it, each cut and scaled as ``asked``.

    ``format`` and ``columns`` are of the first alone; ``sort`` and ``seed`` are of all. ``tell``
    takes the name of each trace and what is known of how it was read.

    Raises
    ------
    TraceError
        If one cannot be read, or nothing is left of it.
    """

    def one(source: Trace | str, number: int, **read: Any) -> Trace:
        if isinstance(source, str):
            source = load_trace(source, sort=sort, seed=seed, **read)
        shaped = asked.apply(source, seed, number)
        if tell is not None:
            tell(source.name, {**shaped.meta, "skipped": source.meta.get("skipped")})
        return shaped

    first = one(trace, 0, format=format, columns=columns)
    return merge_all(first, (one(other, k) for k, other in enumerate(others, 1)))
