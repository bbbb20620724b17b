"""The trace formats that qsim reads, one module each, and how they are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qsim.errors import TraceError
from qsim.traces.build import Reading
from qsim.traces.formats import azure, burstgpt, canonical, mooncake, servegen, vllm_bench
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.trace import Trace

__all__ = ["FORMATS", "Format", "ReadOptions", "format_named", "recognise"]


@dataclass(frozen=True)
class Format:
    """One way of writing a trace."""

    name: str
    what: str
    recognise: Callable[[Source], bool]
    read: Callable[[Source, ReadOptions], Trace]
    #: parameters that may follow the path, as in ``clients.csv.gz:model=m-small``
    params: Mapping[str, str] = field(default_factory=dict)
    #: the same part by part; None for one that must be read whole
    reading: Callable[[Source, ReadOptions], Reading] | None = None


def _only_when_asked_for(_: Source) -> bool:
    return False


#: In the order in which they are tried.
FORMATS: tuple[Format, ...] = (
    Format(
        "canonical",
        canonical.WHAT,
        canonical.recognise,
        canonical.read,
        reading=canonical.reading,
    ),
    Format("azure", azure.WHAT, azure.recognise, azure.read, reading=azure.reading),
    Format(
        "burstgpt",
        burstgpt.WHAT,
        burstgpt.recognise,
        burstgpt.read,
        burstgpt.PARAMS,
        burstgpt.reading,
    ),
    Format(
        "mooncake",
        mooncake.WHAT,
        mooncake.recognise,
        mooncake.read,
        mooncake.PARAMS,
        mooncake.reading,
    ),
    Format(
        "bailian",
        mooncake.WHAT_BAILIAN,
        mooncake.recognise_bailian,
        mooncake.read_bailian,
        mooncake.PARAMS,
        mooncake.reading_bailian,
    ),
    Format(
        "timed-trace",
        mooncake.WHAT_TIMED,
        _only_when_asked_for,
        mooncake.read_timed,
        mooncake.PARAMS,
        mooncake.reading_timed,
    ),
    Format("vllm-bench", vllm_bench.WHAT, vllm_bench.recognise, vllm_bench.read),
    Format("servegen", servegen.WHAT, servegen.recognise, servegen.read, servegen.PARAMS),
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


def recognise(source: Source) -> Format:
    """The format of a file or directory, by what it holds.

    Raises
    ------
    TraceError
        If the file is empty or no format fits.
    """
    if not source.is_dir and not source.head.strip():
        raise TraceError(f"{source.path}: the file is empty; a trace needs at least one request")
    for one in FORMATS:
        if one.recognise(source):
            return one
    known = "; ".join(f"{one.name}: {one.what}" for one in FORMATS)
    if source.is_dir:
        seen = "a directory without chunk-N-trace.csv files"
    else:
        seen = f"it begins {source.head[:80].splitlines()[0].decode('utf-8', 'replace')!r}"
    raise TraceError(
        f"{source.path}: not a trace format that qsim knows ({seen}); the formats are {known}"
    )
