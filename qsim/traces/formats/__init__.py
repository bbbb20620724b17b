"""The trace formats that qsim reads, one module each, and how they are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.source import Source

if TYPE_CHECKING:
    from qsim.traces.reading.build import Reading
    from qsim.traces.trace import Trace

__all__ = ["FORMATS", "Format", "ReadOptions", "format_named", "recognise"]


@dataclass(frozen=True)
class Format:
    """One way of writing a trace; its module is imported when something of it is needed.

    Where a module reads several, its functions are told which, and what it says of one alone is by
    name.
    """

    name: str
    module: str

    def _get(self, name: str) -> Any:
        module = import_module(f"qsim.traces.formats.{self.module}")
        found = getattr(module, name, None)
        if not isinstance(module.WHAT, dict) or found is None:
            return found
        return partial(found, name=self.name) if callable(found) else found.get(self.name, found)

    @property
    def what(self) -> str:
        """What it is, in a line."""
        return str(self._get("WHAT"))

    @property
    def params(self) -> Mapping[str, str]:
        """Parameters that may follow the path, as in ``clients.csv.gz:model=m-small``."""
        return self._get("PARAMS") or {}

    def recognise(self, source: Source) -> bool:
        """Whether a file is of this format; False for one that must be asked for."""
        return bool(self._get("recognise")(source))

    @property
    def read(self) -> Callable[[Source, ReadOptions], Trace]:
        """Reads a file: by the module's ``read``, or all parts of its ``reading``."""
        reading = self.reading
        if reading is None:
            read: Callable[[Source, ReadOptions], Trace] = self._get("read")
            return read
        from qsim.traces.reading.build import read_whole

        return lambda source, options: read_whole(reading(source, options))

    @property
    def reading(self) -> Callable[[Source, ReadOptions], Reading] | None:
        """The same part by part; None for one that must be read whole."""
        found: Callable[[Source, ReadOptions], Reading] | None = self._get("reading")
        return found


#: In the order in which they are tried.
FORMATS: tuple[Format, ...] = (
    Format("canonical", "tables"),
    Format("azure", "tables"),
    Format("burstgpt", "tables"),
    Format("mooncake", "mooncake"),
    Format("bailian", "mooncake"),
    Format("timed-trace", "mooncake"),
    Format("servegen-offline", "mooncake"),
    Format("sglang-bench", "bench_result"),
    Format("vllm-bench", "bench_result"),
    Format("guidellm", "guidellm"),
    Format("aiperf", "aiperf"),
    Format("genai-perf", "genai_perf"),
    Format("dynamo", "dynamo"),
    Format("vidur", "tables"),
    Format("splitwise", "tables"),
    Format("blis", "blis"),
    Format("vllm-log", "vllm_log"),
    Format("otel", "otel"),
    Format("openai-log", "openai_log"),
    Format("sharegpt", "sharegpt"),
    Format("servegen", "servegen"),
    Format("table", "tables"),
)


def format_named(name: str) -> Format:
    """The format of that name.

    Raises
    ------
    TraceError
        If there is none; the message lists them.
    """
    for one in FORMATS:
        if one.name == name:
            return one
    raise TraceError(f"format is {name!r}; must be one of {', '.join(one.name for one in FORMATS)}")


def recognise(source: Source, columns: bool = False) -> Format:
    """The format of a file or directory, by what it holds; ``columns``: its columns are told.

    Raises
    ------
    TraceError
        If the file is empty or no format fits.
    """
    if not source.is_dir and not source.head.strip():
        raise TraceError(f"{source.path}: the file is empty; a trace needs at least one request")
    if columns:
        return format_named("table")
    for one in FORMATS:
        if one.recognise(source):
            return one
    known = "; ".join(f"{one.name}: {one.what}" for one in FORMATS)
    if source.is_dir:
        seen = "a directory without chunk-N-trace.csv files"
    else:
        start = source.head.lstrip()[:80].splitlines()[0].decode("utf-8", "replace")
        before = _lines_before(source.head)
        if before:
            raise TraceError(
                f"{source.path}: line 1 is {start!r}, no header; take out the lines before the "
                f"header: tail -n +{before + 1} FILE"
            )
        blank = source.head.lstrip(b" \t")[:1] in (b"\n", b"\r")
        seen = f"{'after a blank line ' if blank else ''}it begins {start!r}"
    raise TraceError(
        f"{source.path}: not a trace format that qsim knows ({seen}); if it is a table, "
        f"--columns arrival=NAME,prompt=NAME,output=NAME says what is what; the formats are {known}"
    )


def _lines_before(head: bytes) -> int:
    """How many lines of comments, and of Excel's ``sep=;``, stand before a table."""
    for i, line in enumerate(head.splitlines()):
        if not (line.startswith(b"#") or (i == 0 and line.lower().startswith(b"sep="))):
            return i
    return 0
