"""ServeGen's client windows: the rate and gap distribution of every client, every 10 minutes.

The files hold no requests, so reading one means drawing requests from it, with a seed. Two forms
are read: the published folders (``chunk-N-trace.csv`` without a header and, for lengths,
``chunk-N-dataset.json``), and one table with the columns
``model,client,t_s,rate_rps,cv,pattern,shape,scale``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import TraceBuilder
from qsim.traces.reading.json_rows import parse_json
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import Kind, Rows, dialect_of, read_csv
from qsim.traces.synth.lengths import LengthModel
from qsim.traces.synth.presets import PRESETS, load_preset, read_data, table_of
from qsim.traces.trace import Trace

WHAT = (
    "client windows: a folder of chunk-N-trace.csv, one of them, or a table with model,client,t_s"
)
PARAMS = {
    "model": "which model of the table",
    "lengths": "preset or ServeGen model whose lengths to use where the data have none",
    "rate": "mean requests a second of all clients",
    "scale": "multiplies all rates",
    "start": "seconds after the first window to begin at",
    "duration": "seconds to draw",
    "window": "seconds that a window lasts; 600, as published, unless the starts tell otherwise",
}
_TABLE = ("model", "client", "t_s", "rate_rps", "pattern", "shape")
_PATTERNS = ("Gamma", "Weibull")
WINDOW_S = 600.0
#: Refuse to draw more than this: the busiest models have thousands of requests a second.
MAX_REQUESTS = 50_000_000


@dataclass(frozen=True)
class Window:
    """One client in one window of time.

    ``shape`` is that of the Gamma or Weibull distribution of its gaps; ``pattern`` is empty for a
    window without a fit, which is taken for Poisson.
    """

    client: str
    start_s: float
    rate_rps: float
    pattern: str
    shape: float


def recognise(source: Source) -> bool:
    """A folder with client files, the table, or one client file (six numbers a line, no header)."""
    if source.is_dir:
        return any(source.path.glob("chunk-*-trace.csv*"))
    if set(_TABLE) <= set(dialect_of(source.head).names):
        return True
    first = dialect_of(source.head).names
    return len(first) == 6 and _number(first[0]) and _number(first[1]) and _pattern(first[3])


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _pattern(text: str) -> bool:
    return text in (*_PATTERNS, "")


def read(source: Source, options: ReadOptions) -> Trace:
    """Draw the requests of client windows.

    In a window with rate r the client sends ``r * window`` requests (rounded up or down at
    random), with gaps of the window's distribution, stretched to fill the window.
    """
    numbers = {key: _parameter(source, options.params, key) for key in PARAMS if key != "model"}
    model, windows = _windows(source, options.params.get("model"))
    if not any(w.rate_rps > 0 for w in windows):
        raise TraceError(f"{source.path}: no request in it; no window has a rate above 0")
    starts = np.unique([w.start_s for w in windows])
    step_s, notes = _width_s(starts, numbers["window"])
    low = float(starts[0]) + (numbers["start"] or 0.0)
    high = float(starts[-1]) + step_s
    if numbers["duration"] is not None:
        high = min(high, low + numbers["duration"])
    inside = [
        w for w in windows if w.rate_rps > 0 and w.start_s + step_s > low and w.start_s < high
    ]
    expected = sum(
        w.rate_rps * (min(w.start_s + step_s, high) - max(w.start_s, low)) for w in inside
    )
    if expected <= 0:
        raise TraceError(
            f"{source.path}: no client sends anything in [{low:g} s, {high:g} s); the windows run "
            f"from {starts[0]:g} s to {starts[-1] + step_s:g} s"
        )
    factor = numbers["scale"] or 1.0
    if numbers["rate"] is not None:
        factor *= numbers["rate"] * (high - low) / expected
    if expected * factor > MAX_REQUESTS:
        raise TraceError(
            f"{source.path}: about {expected * factor:.3g} requests, more than {MAX_REQUESTS}; "
            "take a part with duration=SECONDS, or less traffic with rate= or scale="
        )
    lengths = lengths_for(source, model, options.params.get("lengths"))
    return _draw(source, options, inside, (low, high, step_s, factor), lengths, notes)


def _width_s(starts: FloatArray, given: float | None) -> tuple[float, list[str]]:
    """How long a window is, and what to say of it.

    ServeGen's windows are of 600 s. Starts that are further apart have silence in between, which
    need not have a row.
    """
    if given is not None:
        return given, []
    apart = np.diff(starts)
    if len(apart) == 0 or not (apart % WINDOW_S == 0).all():
        return (float(apart.min()) if len(apart) else WINDOW_S), []
    if apart.min() == WINDOW_S:
        return WINDOW_S, []
    return WINDOW_S, [
        f"windows begin {apart.min():g} s apart at least; they are taken to last {WINDOW_S:g} s "
        "as ServeGen's do, with silence in between; :window=SECONDS after the path says otherwise"
    ]


def _draw(
    source: Source,
    options: ReadOptions,
    windows: list[Window],
    span: tuple[float, float, float, float],
    lengths: LengthSource,
    notes: list[str],
) -> Trace:
    low, high, step_s, factor = span
    seeds = np.random.SeedSequence(options.seed).spawn(2)
    arrivals_rng, lengths_rng = (np.random.default_rng(s) for s in seeds)
    times, prompts, outputs = [], [], []
    for window in windows:
        arrival = window.start_s + client_gaps(window, step_s, factor, arrivals_rng)
        prompt, output = lengths.draw(window.client, window.start_s, len(arrival), lengths_rng)
        keep = (arrival >= low) & (arrival < high)
        times.append(arrival[keep] - low)
        prompts.append(prompt[keep])
        outputs.append(output[keep])
    builder = TraceBuilder(source, "servegen", sort=True)
    builder.notes += notes
    arrival = np.concatenate(times)
    builder.add(
        np.arange(1, len(arrival) + 1),
        arrival,
        np.concatenate(prompts),
        np.concatenate(outputs),
        column="t_s",
    )
    return builder.build(seed=options.seed, lengths=lengths.what)


def client_gaps(
    window: Window, step_s: float, factor: float, rng: np.random.Generator
) -> FloatArray:
    """Arrival times in one window, from its start."""
    wanted = window.rate_rps * factor * step_s
    n = math.floor(wanted) + int(rng.random() < wanted - math.floor(wanted))
    if n == 0:
        return np.empty(0)
    if window.pattern == "Gamma":
        gaps = rng.standard_gamma(window.shape, n + 1)
    elif window.pattern == "Weibull":
        gaps = rng.weibull(window.shape, n + 1)
    else:
        gaps = rng.standard_exponential(n + 1)
    total = gaps.sum()
    # Shapes far below 1 can underflow to gaps of 0: then all arrive at once, some time.
    if not (total > 0 and np.isfinite(total)):
        return np.full(n, rng.random() * step_s)
    return np.asarray(np.cumsum(gaps)[:-1] * (step_s / total))


def _parameter(source: Source, params: Mapping[str, str], key: str) -> float | None:
    if key not in params or key == "lengths":
        return None
    text = params[key]
    least = "0" if key == "start" else "more than 0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0 or (key == "start" and value == 0))):
        raise TraceError(f"{source.path}: {key} is {text!r}; must be a number, at least {least}")
    return value


def _windows(source: Source, model: str | None) -> tuple[str | None, list[Window]]:
    if not source.is_dir and set(_TABLE) <= set(dialect_of(source.head).names):
        return _table_windows(source, model)
    if model is not None:
        raise TraceError(f"{source.path}: model is {model!r}, but the folder is of one model")
    files = sorted(source.path.glob("chunk-*-trace.csv*")) if source.is_dir else [source.path]
    windows: list[Window] = []
    for file in files:
        own, client = Source(file), file.name.removeprefix("chunk-").partition("-trace")[0]
        fields = len(dialect_of(own.head).names)
        if fields != 6:
            raise TraceError(
                f"{file}, line 1: {fields} fields, must be 6 (window start, rate, cv, pattern, "
                "shape, scale)"
            )
        for rows in read_csv(own, _wanted((0, 1, 3, 4)), header=False):
            windows += _client_windows(rows, [client] * len(rows))
    return None, windows


def _table_windows(source: Source, model: str | None) -> tuple[str, list[Window]]:
    names = dialect_of(source.head).names
    t_s, rate, pattern, shape, which, who = (
        names.index(name) for name in ("t_s", "rate_rps", "pattern", "shape", "model", "client")
    )
    found: dict[str, None] = {}
    windows: list[Window] = []
    wanted = _wanted((t_s, rate, pattern, shape), (which, who))
    for rows in read_csv(source, wanted):
        models = rows.texts(4)
        found |= dict.fromkeys(models)
        chosen = model or models[0]
        keep = np.array([i for i, one in enumerate(models) if one == chosen], np.int64)
        part = rows.take(keep)
        windows += _client_windows(part, part.texts(5))
    if not found:
        raise TraceError(f"{source.path}: no request in it; the file has no data row")
    if model is None and len(found) > 1:
        raise TraceError(
            f"{source.path}: windows of {len(found)} models; choose one with model=NAME after the "
            f"path: {', '.join(found)}"
        )
    if model is not None and model not in found:
        raise TraceError(f"{source.path}: model is {model!r}; must be one of {', '.join(found)}")
    return model or next(iter(found)), windows


def _wanted(numbers: Sequence[int], more: Sequence[int] = ()) -> list[tuple[int, Kind]]:
    """Start, rate, pattern and shape, which may be empty, and further texts."""
    kinds: tuple[Kind, ...] = ("number", "text", "text", "text")
    return [*zip(numbers, kinds, strict=True), *((at, "text") for at in more)]


def _client_windows(rows: Rows, clients: Sequence[str]) -> Iterator[Window]:
    starts = rows.floats(0)
    rates, patterns, shapes = rows.texts(1), rows.texts(2), rows.texts(3)
    for i, client in enumerate(clients):
        rate = float(rates[i]) if _number(rates[i]) else math.nan
        empty = rates[i].strip().lower() in ("", "nan") and not patterns[i]
        if not empty and not 0 <= rate < math.inf:
            rows.fail(i, 1, "a rate >= 0")
        if empty or rate == 0:  # silent: it has no distribution, but its place in time counts
            yield Window(client, float(starts[i]), 0.0, "", 1.0)
            continue
        if not _pattern(patterns[i]):
            rows.fail(i, 2, "Gamma, Weibull or empty")
        value = 1.0
        if patterns[i]:
            value = float(shapes[i]) if _number(shapes[i]) else math.nan
            if not (value > 0 and math.isfinite(value)):
                rows.fail(i, 3, "a shape > 0")
        yield Window(client, float(starts[i]), rate, patterns[i], value)


#: Names of the length histograms in a dataset file; reasoning models split the output.
_PROMPT_FIELDS = ("input_tokens", "input_length")
_OUTPUT_FIELDS = ("output_tokens", "output_length")


@dataclass(frozen=True)
class _Histogram:
    tokens: IntArray
    cumulative: FloatArray

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        at = np.searchsorted(self.cumulative, rng.random(n), side="right")
        return self.tokens[np.minimum(at, len(self.tokens) - 1)]


@dataclass(frozen=True)
class LengthSource:
    """Draws lengths for the requests of a client."""

    #: in words, for the trace's metadata
    what: str
    #: for clients without histograms of their own
    fallback: LengthModel | None
    #: by client: window starts and the (prompt, output) histograms of each
    histograms: dict[str, tuple[FloatArray, list[tuple[_Histogram, _Histogram]]]] = field(
        default_factory=dict
    )

    def draw(
        self, client: str, at_s: float, n: int, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray]:
        """``n`` pairs of (prompt, output) tokens for a client's window."""
        if client in self.histograms:
            starts, tables = self.histograms[client]
            window = max(int(np.searchsorted(starts, at_s, side="right")) - 1, 0)
            prompt, output = tables[window]
            return np.maximum(prompt.draw(n, rng), 1), np.maximum(output.draw(n, rng), 1)
        if self.fallback is None:
            raise TraceError(
                f"client {client} has no chunk-{client}-dataset.json with its lengths; give a "
                "length table with lengths=NAME after the path (a preset, or a ServeGen model "
                f"such as deepseek-r1); the presets are {', '.join(PRESETS)}"
            )
        return self.fallback.draw(rng, n)


def lengths_for(source: Source, model: str | None, name: str | None) -> LengthSource:
    """The lengths for a file: asked for by name, beside the client files, or the model's table.

    Raises
    ------
    TraceError
        If there are none, or a dataset file is malformed.
    """
    fallback = None if name is None else _named(source, name)
    histograms: dict[str, tuple[FloatArray, list[tuple[_Histogram, _Histogram]]]] = {}
    if model is None:
        folder = source.path if source.is_dir else source.path.parent
        own = "chunk-*" if source.is_dir else source.name.partition("-trace")[0]
        for file in sorted(folder.glob(f"{own}-dataset.json*")):
            client = file.name.removeprefix("chunk-").partition("-dataset")[0]
            histograms[client] = _read_dataset(Source(file))
        what = "dataset files" if histograms else f"table of {name}"
        return LengthSource(what, fallback, histograms)
    if fallback is None:
        fallback = _named(source, model)
    return LengthSource(f"table of {name or model}", fallback)


def _named(source: Source, name: str) -> LengthModel:
    if name in PRESETS:
        return load_preset(name).lengths
    tables = read_data("servegen-lengths")["models"]
    complete = [m for m, t in tables.items() if len(t) == 2]
    if name not in complete:
        raise TraceError(
            f"{source.path}: no length table for {name!r}; give one with lengths=NAME after the "
            f"path: {', '.join([*complete, *PRESETS])}"
        )
    table = tables[name]
    return LengthModel(table_of(table["prompt_tokens"]), table_of(table["output_tokens"]))


def _read_dataset(
    source: Source,
) -> tuple[FloatArray, list[tuple[_Histogram, _Histogram]]]:
    try:
        data: Any = parse_json(source.read_whole())
        windows = sorted((float(start), fields) for start, fields in data.items())
    except (ValueError, AttributeError, TypeError) as error:
        raise TraceError(
            f"{source.path}: not {{window start: {{field: histogram}}}} in JSON: {error}"
        ) from None
    starts, tables = [], []
    for start, fields in windows:
        if not fields or not all(_pairs(value) for value in fields.values()):
            continue  # nobody sent anything: ServeGen, too, leaves out a window with an empty one
        prompt = _histogram(source, start, fields, _PROMPT_FIELDS)
        tables.append((prompt, _histogram(source, start, fields, _OUTPUT_FIELDS)))
        starts.append(start)
    if not tables:
        raise TraceError(f"{source.path}: no window with length histograms")
    return np.array(starts), tables


def _pairs(value: Any) -> Any:
    """A histogram, which is a text in the published files; the text itself if it is none."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _histogram(source: Source, start: float, fields: Any, names: tuple[str, ...]) -> _Histogram:
    where = f"{source.path}, window {start:g}"
    key = next((name for name in names if name in fields), None)
    if key is None:
        raise TraceError(f"{where}: none of {', '.join(names)} among its fields {sorted(fields)}")
    value = fields[key]
    try:
        pairs = _pairs(value)
        items = sorted((round(float(t)), float(prob)) for t, prob in pairs.items())
        probability = np.array([prob for _, prob in items])
        if not (len(items) and (probability >= 0).all() and probability.sum() > 0):
            raise ValueError
    except (ValueError, SyntaxError, AttributeError, TypeError):
        raise TraceError(
            f"{where}, column {key!r}: {str(value)[:60]!r} is not {{tokens: probability}}"
        ) from None
    return _Histogram(
        np.array([t for t, _ in items], np.int64), np.cumsum(probability) / probability.sum()
    )
