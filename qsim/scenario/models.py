"""The sections of a scenario as pydantic models: what is not plain, errors, JSON Schema."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Self,
    TypeGuard,
    Union,
    cast,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

if TYPE_CHECKING:
    from qsim.scenario.section import Section


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    section: ClassVar[type[Section]]

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, data: Any) -> Any:
        """A field without a value is as good as left out."""
        if isinstance(data, cls.section):
            data = data.given()
        if isinstance(data, dict) and None in data.values():
            return {k: v for k, v in data.items() if v is not None}
        return data

    @model_validator(mode="after")
    def _together(self) -> Self:
        self.section.check(cast("Any", self))
        return self


def judged(cls: type[Section], data: Any) -> Section:
    """Data as a section of this class.

    Raises
    ------
    pydantic.ValidationError
        If it is not allowed.
    """
    return cast("Section", _section(_model(cls).model_validate(data)))


def json_schema(cls: type[Section]) -> dict[str, Any]:
    """JSON Schema of a section."""
    return _model(cls).model_json_schema()


def _section(value: Any) -> Any:
    """Models as sections, wherever they are."""
    if isinstance(value, _Model):
        values = {n: _section(getattr(value, n)) for n in value.section.model_fields}
        return value.section.made(values, set(value.model_fields_set))
    if isinstance(value, list):
        return [_section(v) for v in value]
    return value


def _model(cls: type[Section]) -> type[_Model]:
    return _built(cast("Any", cls))


@cache
def _built(cls: type[Section]) -> type[_Model]:
    fields: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        said = {"description": field.description or None, **field.defaults()}
        fields[name] = (_hint(field.annotation), Field(**said))
    base = type(cls.__name__, (_Model,), {"section": cls, "__module__": cls.__module__,
                                          "__annotations__": {}})  # fmt: skip
    made: type[_Model] = create_model(
        cls.__name__, __base__=base, __doc__=cls.__doc__, __module__=cls.__module__, **fields
    )
    return made


def _hint(hint: Any) -> Any:
    """The type with models in the place of sections."""
    origin = get_origin(hint)
    if origin is Annotated:
        return Annotated[_hint(hint.__origin__), *hint.__metadata__]
    if origin in (Union, UnionType):
        return Union[tuple(_hint(h) for h in get_args(hint))]  # noqa: UP007
    if origin in (list, dict):
        return origin[tuple(_hint(h) for h in get_args(hint))]
    return _model(hint) if _is_section(hint) else hint


def _is_section(hint: Any) -> TypeGuard[type[Section]]:
    return isinstance(hint, type) and hasattr(hint, "model_fields_set")
