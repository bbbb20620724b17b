"""What other simulators replay (CSV): Vidur's processed traces, and those of splitwise-sim."""

from __future__ import annotations

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import has_columns
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

__all__ = [
    "WHAT_SPLITWISE",
    "WHAT_VIDUR",
    "reading_splitwise",
    "reading_vidur",
    "recognise_splitwise",
    "recognise_vidur",
]

WHAT_VIDUR = "CSV with arrived_at,num_prefill_tokens,num_decode_tokens (Vidur)"
WHAT_SPLITWISE = (
    "CSV with request_id,...,arrival_timestamp,batch_size,prompt_size,token_size (splitwise-sim)"
)
_VIDUR = {
    "arrival": Column("arrived_at", "s"),
    "prompt": Column("num_prefill_tokens"),
    "output": Column("num_decode_tokens"),
}
_SPLITWISE = {
    "arrival": Column("arrival_timestamp", "s"),
    "prompt": Column("prompt_size"),
    "output": Column("token_size"),
}


def recognise_vidur(source: Source) -> bool:
    """Whether Vidur's columns are there."""
    return has_columns(source, (column.name for column in _VIDUR.values()))


def reading_vidur(source: Source, options: ReadOptions) -> Reading:
    """Read what Vidur's trace-replay request generator reads; times are seconds."""
    return read_mapped(source, "vidur", _VIDUR, sort=options.sort)


def recognise_splitwise(source: Source) -> bool:
    """Whether splitwise-sim's columns are there."""
    return has_columns(source, (column.name for column in _SPLITWISE.values()))


def reading_splitwise(source: Source, options: ReadOptions) -> Reading:
    """Read what splitwise-sim's request generator writes; times are seconds."""
    return read_mapped(source, "splitwise", _SPLITWISE, sort=options.sort)
