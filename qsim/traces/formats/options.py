"""What a caller may tell a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qsim.traces.reading.columns import Column

__all__ = ["ReadOptions"]


@dataclass(frozen=True)
class ReadOptions:
    """How to read.

    Attributes
    ----------
    sort : bool
        Put rows in order of arrival instead of refusing a file that is not.
    seed : int
        For formats whose reading is a draw (ServeGen's rate windows).
    params : dict
        Parameters given after the path, for the formats that have any.
    columns : dict
        Which column is what, by role, where the caller says so (``--columns``).
    """

    sort: bool = False
    seed: int = 0
    params: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)
