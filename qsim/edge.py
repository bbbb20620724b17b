"""Where data from outside becomes typed values: pydantic checks it, errors are one line.

A type is a frozen dataclass or a pydantic model whose fields are annotated with
:mod:`qsim.bounds`. Import this module where data is read, not at the top of a module that
``qsim --help`` needs: pydantic takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qsim.bounds import shown
from qsim.errors import QsimError

T = TypeVar("T")
#: where a field lies: names, and numbers in lists
Place = tuple[str | int, ...]


def build(cls: type[T], data: object, where: str, error: type[QsimError]) -> T:
    """``data`` of JSON or YAML as a ``cls``, a dataclass or a pydantic model.

    Raises
    ------
    QsimError
        (of the class ``error``) naming ``where``, the file, the field, its value and what is
        allowed.
    """
    try:
        built: T = _adapter(cast("Any", cls)).validate_python(data)
        return built
    except ValidationError as e:
        problem = e.errors(include_url=False, include_context=True)[0]
    except RecursionError:
        raise error(f"{where}: is nested too deeply") from None
    raise error(f"{where}: {message(cls, problem)}")


@lru_cache(maxsize=64)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def message(
    cls: Any,
    problem: Mapping[str, Any],
    names: Mapping[Place, str] | None = None,
    unknown: Callable[[Place, Iterable[str]], str] | None = None,
) -> str:
    """One of pydantic's errors (of ``ValidationError.errors()``) about a ``cls`` as a sentence.

    ``names`` says what fields are called, by place, in the place of their path; ``unknown`` what to
    do about an unknown field, from its place and its known siblings.
    """
    kind, value = problem["type"], problem["input"]
    at = [step for step in problem["loc"] if step != "[key]"]
    path = (names or {}).get(tuple(at)) or _path(at)
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        fields_ = _known(_at(cls, at[:-1])[0])
        known = f"known: {', '.join(fields_) or 'none'}"
        if unknown is not None:
            known = unknown(tuple(at), fields_)
        inside = f"{_path(at[:-1])}: " if at[:-1] else ""
        return f"{inside}unknown field {shown(at[-1])}; {known}"
    if kind == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{path} {reason}" if path else reason
    hint, bounds = _at(cls, at)
    rule = _rule(kind, value, hint, bounds)
    quotes = kind == "string_type" and isinstance(value, int | float) and hint is str
    return (
        f"{path or 'the data'} is {shown(value)}; must be {rule}"
        f"{': write it in quotes' if quotes else ''}"
    )


def _path(at: list[Any]) -> str:
    path = ""
    for step in at:
        text = step if isinstance(step, int) else shown(step).strip("'")
        path += f"[{step}]" if isinstance(step, int) else f".{text}" if path else str(text)
    return path


def _rule(kind: str, value: object, hint: Any, bounds: tuple[Any, ...]) -> str:
    if kind in ("list_type", "tuple_type"):
        return "a list"
    if kind in ("dataclass_type", "dict_type", "model_type", "model_attributes_type"):
        return "an object"
    for bound in bounds:
        if hasattr(bound, "rule"):
            rule = str(bound.rule)
            return rule.replace("a list", "an object") if isinstance(value, dict) else rule
    if hint is bool:
        return "true or false"
    choices = get_args(hint)
    if choices and all(isinstance(c, str) for c in choices):
        return f"one of {', '.join(choices)}"
    return {str: "a text", int: "a whole number", float: "a number"}.get(hint, f"valid ({kind})")


def _at(hint: Any, at: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The type and the bounds of what lies at a path."""
    bounds: tuple[Any, ...] = ()
    for step in [*at, None]:
        while get_origin(hint) in (Annotated, Union, UnionType):
            if get_origin(hint) is not Annotated:
                hint = next(a for a in get_args(hint) if a is not type(None))
            else:
                bounds, hint = hint.__metadata__, hint.__origin__
        if step is None:
            break
        bounds = ()
        known = _known(hint)
        if known:
            if step not in known:
                return None, ()
            hint = known[step]
        elif get_origin(hint) in (list, tuple):
            hint = get_args(hint)[0]
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return None, ()
    return hint, bounds


def _known(hint: Any) -> dict[str, Any]:
    """The fields of a class with their types; none of anything else."""
    if not (is_dataclass(hint) or hasattr(hint, "model_fields")):
        return {}
    hints = get_type_hints(hint, include_extras=True)
    names = [f.name for f in fields(hint)] if is_dataclass(hint) else list(hint.model_fields)
    return {n: hints[n] for n in names}
