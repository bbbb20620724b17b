"""qsim's own trace format: CSV or Parquet with ``arrival_s,prompt_tokens,output_tokens``.

``hash_ids`` (ids with blanks between them, or a JSON list) and ``hash_block_tokens`` (the prompt
tokens that an id stands for, the same in every row) may follow, ``session_id`` and ``delay_s``
of turns that wait for the answer before them, ``priority`` and ``timeout_s``; other columns are
ignored.
"""

from __future__ import annotations

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import is_json, names_of
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

__all__ = ["WHAT", "reading", "recognise"]

WHAT = "CSV or Parquet with arrival_s,prompt_tokens,output_tokens[,hash_ids,hash_block_tokens]"
_PROMPT = ("prompt_tokens", "input_tokens")


def recognise(source: Source) -> bool:
    """Whether the columns are there, in any case."""
    if source.is_dir or is_json(source):
        return False
    names = {name.lower() for name in names_of(source)}
    return {"arrival_s", "output_tokens"} <= names and bool(names & set(_PROMPT))


def reading(source: Source, options: ReadOptions) -> Reading:
    """Read a canonical trace; lengths must be >= 1."""
    names = {name.lower() for name in names_of(source)}
    mapping = {
        "arrival": Column("arrival_s", "s"),
        "prompt": Column(next((n for n in _PROMPT if n in names), _PROMPT[0])),
        "output": Column("output_tokens"),
        "hash_ids": Column("hash_ids"),
        "block": Column("hash_block_tokens"),
        "session": Column("session_id"),
        "delay": Column("delay_s", "s"),
        "priority": Column("priority", given=True),
        "timeout": Column("timeout_s", "s", given=True),
    }
    needed = ("arrival", "prompt", "output")
    found = {r: c for r, c in mapping.items() if r in needed or c.name in names}
    return read_mapped(source, "canonical", found, sort=options.sort, strict=True)
