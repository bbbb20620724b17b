"""Write docs/data/scenario.csv: every field of a scenario file, from its JSON Schema.

::

    python docs/scripts/scenario_fields.py
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qsim.scenario import Scenario

TARGET = Path(__file__).parent.parent / "data" / "scenario.csv"
HEAD = ("field", "kind", "default", "what")


def kind_of(field: dict[str, Any]) -> str:
    """A field's type in a word or two."""
    options = [o for o in field.get("anyOf", [field]) if o.get("type") != "null"]
    names: list[str] = []
    for one in options:
        if "enum" in one:
            names += [str(v) for v in one["enum"]]
        elif one.get("type") == "array":
            names.append("list")
        elif isinstance(one.get("type"), list):
            names += one["type"]
        else:
            names.append(str(one.get("const", one.get("type", "any"))))
    words = {"string": "text", "object": "mapping", "integer": "whole number", "boolean": "yes/no"}
    return ", ".join(dict.fromkeys(words.get(n, n) for n in names))


def fields(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[list[str]]:
    """A row for each field, sections gone into."""
    for name, field in node.get("properties", {}).items():
        here = f"{path}{name}"
        inner, where = field, here + "."
        if field.get("type") == "array" and "$ref" in field.get("items", {}):
            inner, where = field["items"], here + ".0."
        for one in [inner, *inner.get("anyOf", ()), *inner.get("allOf", ())]:
            if "$ref" in one:
                section = schema["$defs"][one["$ref"].rpartition("/")[2]]
                if "properties" in section:
                    text = field.get("description") or section.get("description", "")
                    yield [here, "list of sections" if where != here + "." else "section", "", text]
                    yield from fields(schema, section, where)
                    break
        else:
            default = field.get("default")
            shown = "" if default is None or default in ([], {}) else str(default)
            yield [here, kind_of(field), shown, field.get("description", "")]


def table() -> str:
    """The file's text."""
    schema = Scenario.json_schema()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows([" ".join(cell.split()) for cell in row] for row in fields(schema, schema))
    return out.getvalue()


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
