"""Where the lengths of ServeGen requests come from."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.errors import TraceError
from qsim.traces.reading.json_rows import parse_json
from qsim.traces.reading.source import Source
from qsim.traces.synth.lengths import LengthModel
from qsim.traces.synth.presets import PRESETS, load_preset, read_data, table_of

__all__ = ["LengthSource", "lengths_for"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

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
    """Draws lengths for the requests of a client.

    Attributes
    ----------
    what : str
        In words, for the trace's metadata.
    fallback : LengthModel, optional
        For clients without histograms of their own.
    histograms : dict
        By client: window starts and the (prompt, output) histograms of each.
    """

    what: str
    fallback: LengthModel | None
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
        pattern = "chunk-*-dataset.json*" if source.is_dir else _dataset_name(source.name)
        for file in sorted(folder.glob(pattern)):
            client = file.name.removeprefix("chunk-").partition("-dataset")[0]
            histograms[client] = _read_dataset(Source(file))
        what = "dataset files" if histograms else f"table of {name}"
        return LengthSource(what, fallback, histograms)
    if fallback is None:
        fallback = _named(source, model)
    return LengthSource(f"table of {name or model}", fallback)


def _dataset_name(name: str) -> str:
    return name.partition("-trace")[0] + "-dataset.json*"


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
