"""lm-eval's results JSON, as far as it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from qsim.bounds import Count, Items, Line, Plain
from qsim.edge import build
from qsim.errors import ScenarioError

_Object = Annotated[dict[str, Any], Plain()]


class _Counts(BaseModel):
    model_config = ConfigDict(extra="allow")

    effective: Count = 0


class _Results(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    results: dict[Line, _Object]
    config: _Object | None = None
    versions: _Object = {}
    shots: _Object = Field(default={}, alias="n-shot")
    counts: dict[Line, _Counts] = Field(default={}, alias="n-samples")
    group_subtasks: dict[Line, Annotated[list[Line], Items(1000)]] = {}
    samples: dict[Line, list[dict[str, Any]]] = {}


def check_results(data: dict[str, Any], where: str) -> None:
    """Check that lm-eval's results have the shape that is read.

    Raises
    ------
    ScenarioError
        Naming the part that has not.
    """
    build(_Results, data, where, ScenarioError)
