"""The rows of a sweep as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsim.checks import check_ending
from qsim.files import atomic_path, write_text
from qsim.tables import rows_csv

__all__ = ["ENDINGS", "rows_json", "write_rows"]

ENDINGS = (".csv", ".json", ".parquet")


def rows_json(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """One JSON object: what was asked for, and the rows."""
    data = {"schema": "qsim-sweep/1", "settings": dict(settings), "rows": [dict(r) for r in rows]}
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_rows(path: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write by the ending of ``path``; whole or not at all."""
    check_ending("--out", path, ENDINGS)
    if path.endswith(".csv"):
        write_text(path, rows_csv(rows))
    elif path.endswith(".json"):
        write_text(path, rows_json(rows, settings))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {n: _column([r[n] for r in rows]) for n in rows[0]}
        metadata = {"qsim": json.dumps(dict(settings), ensure_ascii=False)}
        with atomic_path(Path(path)) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: text where they differ in kind, such as numbers and words."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if v is None else float(v) for v in values]
    if len(kinds) > 1:
        return [None if v is None else str(v) for v in values]
    return values
