"""Paths into a scenario: ``--set fleet.pools.0.replicas=2``."""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from qsim.bounds import shown
from qsim.checks import near_names
from qsim.documents import parse_yaml
from qsim.errors import ScenarioError
from qsim.scenario.section import Checked, Section

_INDEX = re.compile(r"\[(\d{1,9})\]")
_LONGEST = 10_000


def parse_set(data: dict[str, Any], text: str, root: type[Section]) -> None:
    """Put ``PATH=VALUE`` into plain data of a scenario; the value is YAML, empty for the default.

    Raises
    ------
    ScenarioError
        If it is no such text, the path leads nowhere or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    if not (path.strip() and equals) or len(text) > _LONGEST:
        raise ScenarioError(
            f"--set {shown(text)} does not parse; write PATH=VALUE, such as "
            "fleet.pools.0.replicas=2"
        )
    put_at(data, path.strip(), value.strip(), root, as_text=True)


def put_at(
    data: dict[str, Any], path: str, value: Any, root: type[Section], *, as_text: bool = False
) -> None:
    """Put a value into plain, checked data of a scenario (``root``); None takes it out.

    The path is of names with points between them; a pool by number, name or profile. A value that
    is ``as_text`` comes from a command line: YAML where the field is no text.

    Raises
    ------
    ScenarioError
        If the path leads nowhere.
    """
    left = _INDEX.sub(r".\1", path)
    node: Any = data
    hint: Any = root
    walked = ""
    while True:
        fields = _fields(hint)
        name, _, left = left.partition(".")
        if name not in fields:
            where = f"{walked}: " if walked else ""
            elsewhere = [] if walked else paths_named(name, root)[:4]
            hint_ = near_names(name, fields)
            if elsewhere:
                hint_ = f"it belongs to {' or '.join(elsewhere)}"
            raise ScenarioError(
                f"{path} leads nowhere: {where}unknown field {shown(name)}; {hint_}"
            )
        walked = f"{walked}.{name}" if walked else name
        hint, rule = _bare(fields[name])
        if not left:
            break
        if _fields(hint):
            node = node.setdefault(name, {})
        elif get_origin(hint) is list and _fields(get_args(hint)[0]):
            pools = node.setdefault(name, [])
            at, left = _member(pools, left, path)
            if at == len(pools):
                pools.append({})
            hint = get_args(hint)[0]
            walked = f"{walked}.{at}"
            if not left:
                raise ScenarioError(f"{path} is a pool; give one of its fields, such as "
                                    f"{walked}.replicas")  # fmt: skip
            node = pools[at]
        elif get_origin(hint) is dict or (hint is Any and rule is not None and not _a_text(rule)):
            held = node.setdefault(name, {})
            if not isinstance(held, dict):
                raise ScenarioError(f"{path}: {walked} holds a list here; give all of it")
            node, name, hint, rule = held, left, None, None
            break
        else:
            raise ScenarioError(f"{path} leads nowhere: {walked} has no fields")
    if as_text:
        value = _read(value, hint is str or (rule is not None and _a_text(rule)), path)
    if value is None:
        node.pop(name, None)
    else:
        node[name] = value


def _read(text: str, a_text: bool, path: str) -> Any:
    if text in ("", "null", "~"):
        return None
    if a_text and text[0] not in "'\"":
        return text
    return parse_yaml(text, f"--set {path}={shown(text)[1:-1]}")


def _member(pools: list[Any], left: str, path: str) -> tuple[int, str]:
    """The number of a pool, and what is left of the path."""
    labels: list[tuple[str, int]] = []
    for i, pool in enumerate(pools):
        label = pool.get("name") or pool.get("profile")
        if isinstance(label, str):
            labels.append((label, i))
    labels.sort(key=lambda one: -len(one[0]))
    for label, i in labels:
        if left == label or left.startswith(label + "."):
            if sum(other == label for other, _ in labels) > 1:
                raise ScenarioError(f"{path}: several pools are called {shown(label)}; "
                                    "give the number of one, from 0")  # fmt: skip
            return i, left[len(label) + 1 :]
    word, _, rest = left.partition(".")
    if word.isascii() and word.isdecimal() and len(word) < 6:
        if int(word) <= len(pools):
            return int(word), rest
        raise ScenarioError(f"{path}: there are {len(pools)} pools; must be a number <= "
                            f"{len(pools)}, which adds one")  # fmt: skip
    names = [label for label, _ in labels]
    known = near_names(word, names) if names else "there is none yet: 0 adds one"
    raise ScenarioError(f"{path}: no pool {shown(word)}; {known}")


def _fields(hint: Any) -> dict[str, Any]:
    if not (isinstance(hint, type) and issubclass(hint, Section)):
        return {}
    return {name: f.annotation for name, f in hint.model_fields.items()}


def _bare(hint: Any) -> tuple[Any, Checked | None]:
    """A type without ``Annotated`` and ``| None``, and its own check."""
    rule: Checked | None = None
    while get_origin(hint) in (Annotated, Union, UnionType):
        if get_origin(hint) is Annotated:
            rule = next((m for m in hint.__metadata__ if isinstance(m, Checked)), rule)
            hint = hint.__origin__
        else:
            hint = next(a for a in get_args(hint) if a is not type(None))
    return hint, rule


def _a_text(rule: Checked) -> bool:
    return rule.schema.get("type") == "string"


def paths_named(key: str, root: type[Section], before: str = "") -> list[str]:
    """The paths of all fields of that name, for somebody who looks for one in the wrong place."""
    found = []
    for name, given in _fields(root).items():
        hint, _ = _bare(given)
        path = f"{before}{name}"
        if name == key and before:
            found.append(path)
        if get_origin(hint) is list and _fields(get_args(hint)[0]):
            hint, path = get_args(hint)[0], f"{path}.0"
        if _fields(hint):
            found += paths_named(key, hint, f"{path}.")
    return found
