"""Tables of known columns (Azure, BurstGPT, Vidur, splitwise-sim, our own), and any others.

Our own (canonical) has ``arrival_s,prompt_tokens,output_tokens``; ``hash_ids`` (ids with blanks
between them, or a JSON list) and ``hash_block_tokens`` (the prompt tokens that an id stands for,
the same in every row) may follow, ``session_id`` and ``delay_s`` of turns that wait for the answer
before them, ``priority`` and ``timeout_s``; other columns are ignored.
"""

from __future__ import annotations

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import Column, find_columns, has_columns, is_json, names_of
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

WHAT = {
    "canonical": "CSV or Parquet with arrival_s,prompt_tokens,output_tokens[,hash_ids,"
    "hash_block_tokens]",
    "azure": "CSV with TIMESTAMP,ContextTokens,GeneratedTokens (Azure LLM inference 2023, 2024, "
    "2025)",
    "burstgpt": "CSV with Timestamp,Model,Request tokens,Response tokens,... (BurstGPT)",
    "vidur": "CSV with arrived_at,num_prefill_tokens,num_decode_tokens (Vidur)",
    "splitwise": "CSV with request_id,...,arrival_timestamp,batch_size,prompt_size,token_size "
    "(splitwise-sim)",
    "table": "CSV, Parquet, JSON lines or a JSON array with a time, prompt tokens and output "
    "tokens under usual names, or those that --columns gives",
}
PARAMS: dict[str, dict[str, str]] = {name: {} for name in WHAT} | {
    "burstgpt": {
        "model": "keep the rows of this model (ChatGPT or GPT-4)",
        "log": "keep the rows of this kind (api or conversation)",
    }
}
_FILTERS = (("model", "Model"), ("log", "Log Type"))
_NEEDED = ("arrival", "prompt", "output")
#: times in s, but for Azure's, which are dates
_KNOWN = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "splitwise": ("arrival_timestamp", "prompt_size", "token_size"),
}
_PROMPT = ("prompt_tokens", "input_tokens")
_CANONICAL = {
    "hash_ids": Column("hash_ids"),
    "block": Column("hash_block_tokens"),
    "session": Column("session_id"),
    "delay": Column("delay_s", "s"),
    "priority": Column("priority", given=True),
    "timeout": Column("timeout_s", "s", given=True),
}


def recognise(source: Source, name: str) -> bool:
    """Whether a format's columns are there, in any case; of any table two of the three needed."""
    if source.is_dir:
        return False
    if name == "table":
        found = find_columns(names_of(source))
        return sum(role in found for role in _NEEDED) >= 2
    if name == "canonical":
        names = set() if is_json(source) else _lower_names(source)
        return {"arrival_s", "output_tokens"} <= names and bool(names & set(_PROMPT))
    return has_columns(source, _KNOWN[name])


def reading(source: Source, options: ReadOptions, name: str) -> Reading:
    """Read a table.

    Times of Azure's and BurstGPT's count from the first request that is kept, Azure's exact to
    1 ns; the reduced form of Azure's is canonical. A row without a prompt or output token, which
    no engine can serve, is skipped and counted (BurstGPT: a failed request); in a canonical trace
    it is an error.
    """
    if name == "table":
        return _any_table(source, options)
    lower = _lower_names(source)
    if name == "canonical" or (
        name == "azure" and "timestamp" not in lower and "arrival_s" in lower
    ):
        mapping = {
            "arrival": Column("arrival_s", "s"),
            "prompt": Column(next((n for n in _PROMPT if n in lower), _PROMPT[0])),
            "output": Column("output_tokens"),
            **{role: column for role, column in _CANONICAL.items() if column.name in lower},
        }
        return read_mapped(source, "canonical", mapping, sort=options.sort, strict=True)
    arrival, prompt, output = _KNOWN[name]
    unit = None if name == "azure" else "s"
    params = options.params
    return read_mapped(
        source,
        name,
        {"arrival": Column(arrival, unit), "prompt": Column(prompt), "output": Column(output)},
        sort=options.sort,
        absolute=name in ("azure", "burstgpt"),
        zero="failed request: response of 0 tokens" if name == "burstgpt" else "no output token",
        filters=[(c, params[k].lower(), f"{k}={params[k]}") for k, c in _FILTERS if k in params],
    )


def _lower_names(source: Source) -> set[str]:
    return {name.lower() for name in names_of(source)}


def _any_table(source: Source, options: ReadOptions) -> Reading:
    names = names_of(source)
    if not names:
        raise TraceError(
            f"{source.path}: no columns: it is neither CSV with a header, Parquet, nor JSON objects"
        )
    found = find_columns(names)
    # prefix ids and sessions of a table that names some columns are those that it names
    mapping = {**{k: v for k, v in found.items() if k in _NEEDED or not options.columns},
               **options.columns}  # fmt: skip
    return read_mapped(source, "table", mapping, sort=options.sort)
