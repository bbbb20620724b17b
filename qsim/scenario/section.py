"""A section of a scenario: named, typed fields with defaults, checked once.

pydantic takes a tenth of a second to import and to build its models: as long as a short simulation.
So a section is a plain class, and what is plainly allowed is taken by the fields' own bounds
(:mod:`qsim.bounds`). Whatever is not plainly allowed goes to pydantic
(:mod:`qsim.scenario.models`, of the same fields), which takes it or says what is wrong with it.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

from qsim.bounds import Items, Number, Text, Whole, shown

T = TypeVar("T")
#: the default of a field that has none
MISSING: Any = object()


class Doubt(Exception):  # noqa: N818  (no error: somebody else judges)
    """A value is not plainly allowed; pydantic is to judge it."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A field with a check of its own."""

    #: in the words of an error
    rule: str
    #: takes a value and returns what is kept; raises ValueError for any other
    check: Callable[[Any], Any]
    #: what JSON Schema says of it
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        def check(value: Any) -> Any:
            try:
                return self.check(value)
            except ValueError:
                raise ValueError(f"is {shown(value)}; must be {self.rule}") from None

        return {"type": "function-plain", "function": {"type": "no-info", "function": check}}

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return dict(self.schema)


class FieldInfo:
    """A field: its default, its description and its type."""

    owner: type[Section]
    name: str

    def __init__(
        self,
        default: Any = MISSING,
        default_factory: Callable[[], Any] | None = None,
        description: str = "",
    ) -> None:
        #: :data:`MISSING` if there is none, or a factory makes it
        self.default, self.default_factory = default, default_factory
        self.description = description

    @cached_property
    def annotation(self) -> Any:
        """The type, with what bounds it."""
        text = self.owner.__annotations__[self.name]
        return eval(text, vars(sys.modules[self.owner.__module__]))

    def defaults(self) -> dict[str, Any]:
        """Its default or its factory by name; empty if it has none."""
        if self.default_factory is not None:
            return {"default_factory": self.default_factory}
        return {} if self.default is MISSING else {"default": self.default}

    def left_out(self) -> Any:
        """Its value where none is given; :data:`MISSING` if one has to be."""
        return self.default if self.default_factory is None else self.default_factory()


def Field(  # noqa: N802  (a class to its reader, as of pydantic and dataclasses)
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    description: str = "",
) -> Any:
    """A field of a section, with what a bare default does not say."""
    return FieldInfo(default, default_factory, description)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Section:
    """A part of a scenario: fields of their own type and no others; it does not change."""

    #: of the class
    model_fields: ClassVar[dict[str, FieldInfo]] = {}
    #: those that were given
    model_fields_set: ClassVar[set[str]] = set()  # of an instance; no field

    def __init_subclass__(cls) -> None:
        own: dict[str, FieldInfo] = {}
        for name in inspect.get_annotations(cls):
            given = cls.__dict__.get(name, MISSING)
            field = given if isinstance(given, FieldInfo) else FieldInfo(given)
            field.owner, field.name = cls, name
            own[name] = field
            if given is not MISSING:
                delattr(cls, name)
        cls.model_fields = {**cls.model_fields, **own}

    def __init__(self, **data: Any) -> None:
        """Check the fields.

        Raises
        ------
        pydantic.ValidationError
            If one is not allowed.
        """
        self._become(validated(type(self), data))

    def _become(self, other: Section) -> None:
        vars(self).update(vars(other))

    @classmethod
    def made(cls, values: Mapping[str, Any], given: set[str]) -> Self:
        """Of values for all fields, which are known to be allowed."""
        made = cls.__new__(cls)
        vars(made).update({name: values[name] for name in cls.model_fields})
        vars(made)["model_fields_set"] = given
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} cannot be set: it does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(
            f"{name} of a {type(self).__name__} cannot be deleted: it does not change"
        )

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([(name, getattr(self, name)) for name in self.model_fields])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self)})"

    def check(self) -> None:
        """What its fields have to be to each other.

        Raises
        ------
        ValueError
            Saying what they are.
        """

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with other values, which are known to be allowed."""
        return self.made({**dict(self), **update}, self.model_fields_set | set(update))

    def as_a(self, kind: type[T], **others: Any) -> T:
        """The fields that a dataclass has too as one of these, with ``others`` in their place."""
        names = {f.name for f in fields(cast("Any", kind))} & self.model_fields.keys()
        return kind(**{**{name: getattr(self, name) for name in names}, **others})

    def given(self) -> dict[str, Any]:
        """What was given, as plain data, without what was left to its default."""
        return {k: _held(v) for k, v in self if k in self.model_fields_set}

    def resolved(self) -> dict[str, Any]:
        """All that is said, as plain data, defaults included; without what is None."""
        return {k: _held(v, all_=True) for k, v in self if v is not None}


def _held(value: Any, *, all_: bool = False) -> Any:
    """Sections as dicts; all else (a trace, a profile) as it is."""
    if isinstance(value, Section):
        return value.resolved() if all_ else value.given()
    if isinstance(value, list):
        return [_held(v, all_=all_) for v in value]
    return dict(value) if isinstance(value, dict) else value


def validated(cls: type[Section], data: Any) -> Section:
    """Data as a section of this class.

    Raises
    ------
    pydantic.ValidationError
        If it is not allowed.
    """
    try:
        return plainly(cls, data)
    except (Doubt, RecursionError):
        from qsim.scenario.models import judged

        return judged(cls, data)


def plainly(cls: type[Section], data: Any) -> Section:
    """The same of data that is plainly allowed.

    Raises
    ------
    Doubt
        If it is not, which does not mean that it is wrong.
    """
    if isinstance(data, cls):
        return data
    if type(data) is not dict:
        raise Doubt
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in cls.model_fields:
            raise Doubt
        if value is not None:  # as good as left out
            values[name] = _allowed(cls.model_fields[name].annotation, value)
    given = set(values)
    for name, field in cls.model_fields.items():
        if name not in given:
            values[name] = field.left_out()
            if values[name] is MISSING:
                raise Doubt
    made = cls.made(values, given)
    try:
        made.check()
    except ValueError:
        raise Doubt from None
    return made


def _allowed(hint: Any, value: Any) -> Any:
    """What is kept of a value of this type."""
    origin = get_origin(hint)
    if origin is Annotated:
        if len(hint.__metadata__) != 1:
            raise Doubt
        return _bounded(hint.__origin__, hint.__metadata__[0], value)
    if origin in (Union, UnionType):
        hints = [h for h in get_args(hint) if h is not type(None)]
        if len(hints) != 1:
            raise Doubt
        return _allowed(hints[0], value)
    kind = type(value)
    if origin is Literal:
        if kind is str and value in get_args(hint):
            return value
    elif origin is list:
        if kind is list:
            return [_allowed(get_args(hint)[0], v) for v in value]
    elif origin is dict:
        if kind is dict:
            of_key, of_value = get_args(hint)
            return {_allowed(of_key, k): _allowed(of_value, v) for k, v in value.items()}
    elif hint is Any:
        return value
    elif isinstance(hint, type) and issubclass(hint, Section):
        return plainly(hint, value)
    elif hint in (bool, str) and kind is hint:
        return value
    raise Doubt


def _bounded(hint: Any, bound: Any, value: Any) -> Any:
    """What is kept of a value of a type with a bound."""
    if isinstance(bound, Checked):
        try:
            return bound.check(value)
        except ValueError:
            raise Doubt from None
    kind = type(value)
    if isinstance(bound, Whole):
        if kind is int and bound.least <= value <= bound.most:
            return value
    elif isinstance(bound, Number):
        above = -math.inf if bound.above is None else bound.above
        low = bound.least if bound.above is None else -math.inf
        if kind in (int, float) and low <= value <= bound.most and value > above:
            return float(value)
    elif isinstance(bound, Text):
        if kind is str and bound.allows(value):
            return value
    elif isinstance(bound, Items):
        kept = _allowed(hint, value)
        if bound.least <= len(kept) <= bound.most:
            return kept
    raise Doubt
