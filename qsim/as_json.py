"""Results as JSON has them: objects, lists and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def json_ready(value: Any) -> Any:
    """A value and all that it holds as JSON has it: results by ``to_dict``, tuples as lists."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {k: json_ready(v) for k, v in value.items()}
    return [json_ready(v) for v in value] if isinstance(value, list | tuple) else value


class JsonReady:
    """A dataclass that JSON holds as an object of its fields."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every field by its name, in their order."""
        return {f.name: json_ready(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
