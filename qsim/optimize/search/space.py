"""What a search may choose: named decisions, each a list of choices or a range of numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from qsim.bounds import shown
from qsim.checks import MAX_WHOLE, is_number
from qsim.errors import ScenarioError
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


Value = str | int | float | bool | None

#: values of one decision that are enumerated
MAX_VALUES = 100_000
#: characters of one option
MAX_TEXT = 100_000
_INT = re.compile(r"[+-]?[0-9]{1,30}")


@dataclass(frozen=True)
class Choices:
    """One of a list of values, in the order given."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ScenarioError("a decision has no choices; give at least one value")
        for i, value in enumerate(self.values):
            if value in self.values[:i] and type(value) in {type(v) for v in self.values[:i]}:
                raise ScenarioError(f"a decision has the choice {value!r} twice; give it once")

    def grid(self) -> tuple[Value, ...]:
        """All values."""
        return self.values

    def at(self, share: float) -> Value:
        """The value at ``share`` in [0, 1) of the way, for designs such as a Latin hypercube."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def size(self) -> int | None:
        """Number of values."""
        return len(self.values)

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def __str__(self) -> str:
        return ",".join(_text(v) for v in self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included; whole if both are."""

    low: int | float
    high: int | float
    #: only ``low``, ``low + step``, ...; not with ``log``
    step: int | float | None = None
    #: search its logarithm
    log: bool = False

    def __post_init__(self) -> None:
        text = f"range {self}"
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ScenarioError(f"{text}: must be two finite numbers, the lower one first")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ScenarioError(f"{text}: log needs a beginning above 0, and takes no step")
        if self.step is not None and not 0 < self.step < math.inf:
            raise ScenarioError(f"{text}: the step must be above 0")
        if self.step is not None and self.whole and not isinstance(self.step, int):
            raise ScenarioError(f"{text}: the step of whole numbers must be a whole number")
        if max(abs(self.low), abs(self.high)) > MAX_WHOLE:
            raise ScenarioError(f"{text}: must lie within {MAX_WHOLE}")

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def _spacing(self) -> int | float | None:
        """Between two values; None if they cannot be enumerated."""
        return 1 if self.step is None and self.whole and not self.log else self.step

    def grid(self) -> tuple[Value, ...]:
        """All values.

        Raises
        ------
        ScenarioError
            If there is no end of them.
        """
        step = self._spacing
        if step is None:
            raise ScenarioError(
                f"range {self} cannot be enumerated; a grid takes choices (64,128,256), a step "
                "(0:100:20) or a factor (64:1024:x2)"
            )
        count = self.count(step)
        if count > MAX_VALUES:
            raise ScenarioError(
                f"range {self} has {count:.3g} values; at most {MAX_VALUES} are enumerated: give "
                "a larger step or choices"
            )
        return tuple(self.low + i * step for i in range(count))

    def count(self, step: float) -> int:
        """Number of values that are ``step`` apart."""
        return math.floor((self.high - self.low) / step + 1e-9) + 1

    def at(self, share: float) -> Value:
        """The value at ``share`` in [0, 1) of the way, for designs such as a Latin hypercube."""
        step = self._spacing
        if step is not None:
            count = self.count(step)
            return self.low + min(int(share * count), count - 1) * step
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
            return min(self.high, max(self.low, round(value) if self.whole else value))
        return self.low + share * (self.high - self.low)

    def size(self) -> int | None:
        """Number of values; None if it cannot be enumerated."""
        return None if self._spacing is None else self.count(self._spacing)

    def distribution(self) -> BaseDistribution:
        """As Optuna has it; steps of a fraction as choices, which rounding cannot shift."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if not self.whole:
            if self.step is not None:
                return CategoricalDistribution(self.grid())
            return FloatDistribution(float(self.low), float(self.high), self.log)
        step = int(self.step or 1)
        low = int(self.low)
        return IntDistribution(low, low + (int(self.high) - low) // step * step, self.log, step)

    def __str__(self) -> str:
        end = ":log" if self.log else "" if self.step is None else f":{_text(self.step)}"
        return f"{_text(self.low)}:{_text(self.high)}{end}"


Decision = Choices | Range


@dataclass(frozen=True)
class Space:
    """Decisions by name. What has a single choice is fixed."""

    decisions: Mapping[str, Decision]

    def __post_init__(self) -> None:
        if not self.decisions:
            raise ScenarioError("there is nothing to decide; give at least one decision")

    def size(self) -> int | None:
        """Number of combinations; None if a range cannot be enumerated."""
        sizes = [d.size() for d in self.decisions.values()]
        return None if None in sizes else math.prod(s for s in sizes if s is not None)

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination, the last decision varying fastest.

        Raises
        ------
        ScenarioError
            If a range cannot be enumerated.
        """
        names = list(self.decisions)
        columns = []
        for name, decision in self.decisions.items():
            try:
                columns.append(decision.grid())
            except ScenarioError as e:
                raise ScenarioError(f"{name}: {e}") from None
        for values in itertools.product(*columns):
            yield dict(zip(names, values, strict=True))

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna has them."""
        return {name: d.distribution() for name, d in self.decisions.items()}

    def to_dict(self) -> dict[str, str]:
        """Each decision as text, as ``--search`` takes it."""
        return {name: str(d) for name, d in self.decisions.items()}


def parse_decision(text: str, option: str = "--search") -> tuple[str, Decision]:
    """Read ``NAME=A,B,C`` or ``NAME=LOW:HIGH[:STEP|:log|:xFACTOR]``.

    ``64:1024:x2`` means the choices 64, 128, ..., 1024. Values are numbers, ``true``, ``false`` or
    text; numbers may be written 8k (8000) or 8K (8192).

    Raises
    ------
    ScenarioError
        Naming what is wrong and how it is written.
    """
    if len(str(text)) > MAX_TEXT:
        raise ScenarioError(
            f"{option} {shown(text)} has {len(str(text))} characters; must have at most {MAX_TEXT}"
        )
    name, equals, values = str(text).partition("=")
    name, values = name.strip().lstrip("-").replace("-", "_"), values.strip()
    if not (name and equals and values):
        raise ScenarioError(
            f"{option} {text!r} does not parse; write NAME=A,B,C or NAME=LOW:HIGH, such as "
            "max_num_seqs=64,128,256 or max_num_seqs=32:1024:log"
        )
    if name == "vllm_version":  # 0.30 is no number
        return name, Choices(tuple(v.strip() for v in values.split(",")))
    try:
        span = _range(values)
        if isinstance(span, Range) and span.step is not None:
            span.grid()  # steps are there to be enumerated
        return name, span or Choices(tuple(_value(v) for v in _split(name, values)))
    except ScenarioError as e:
        raise ScenarioError(f"{option} {text!r}: {e}") from None


def _split(name: str, values: str) -> list[str]:
    """The values; those of a router have their parameters behind them, which commas part too."""
    found: list[str] = []
    for part in values.split(","):
        if name == "router" and found and "=" in part and ":" not in part and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def search_texts(values: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """``{"max_num_seqs": [64, 128], "router": None}`` as ``["max_num_seqs=64,128", "router"]``."""
    if isinstance(values, Mapping):
        return [k if v is None else f"{k}={value_text(v)}" for k, v in values.items()]
    return list(values)


def value_text(value: Any) -> str:
    """A value, or several, as :func:`parse_decision` reads them."""
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _range(text: str) -> Decision | None:
    parts = [p.strip() for p in text.split(":")]
    if len(parts) not in (2, 3):
        return None
    low, high = _value(parts[0]), _value(parts[1])
    if not (is_number(low) and is_number(high)):
        return None  # an id or a preset with colons
    if len(parts) == 2:
        return Range(low, high)
    if parts[2] == "log":
        return Range(low, high, log=True)
    if parts[2].startswith("x"):
        factor = _value(parts[2][1:])
        if not is_number(factor) or factor <= 1 or low <= 0:
            raise ScenarioError("a factor is written xF with F above 1, from a number above 0")
        return Choices(tuple(_powers(low, high, factor)))
    step = _value(parts[2])
    if not is_number(step):
        raise ScenarioError(f"{parts[2]!r} is no step: a number, log or xFACTOR")
    return Range(low, high, step)


def _powers(low: float, high: float, factor: float) -> Iterator[Value]:
    value = low
    if high > 0 and math.log(max(high, low) / low) > MAX_VALUES * math.log(factor):
        raise ScenarioError(
            f"factor {factor!r} gives more than {MAX_VALUES} values from {low} to {high}"
        )
    while value <= high * (1 + 1e-12):
        yield round(value) if isinstance(low, int) else value
        value *= factor


def _value(text: str) -> Value:
    """A number, true, false, none or text."""
    text = text.strip()
    lower = text.lower()
    if lower in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lower]
    scale = 1
    if len(text) > 1 and text[-1] in "kmgtKMGT" and text[-2].isdigit():
        scale = (1000 if text[-1].islower() else 1024) ** ("kmgt".index(text[-1].lower()) + 1)
    digits = text[:-1] if scale > 1 else text
    if _INT.fullmatch(digits):
        whole = int(digits) * scale
        if abs(whole) > MAX_WHOLE:
            raise ScenarioError(f"{shown(text)} is too large; whole numbers go to {MAX_WHOLE}")
        return whole
    try:
        number = float(digits) * scale
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if scale > 1 and number == int(number) else number


def _text(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


V = TypeVar("V")


def largest_measured(profiles: Sequence[Profile], options: EngineOptions) -> dict[str, int]:
    """By setting the largest value that is within the measured range of any of the profiles.

    Without a setting that a profile says nothing of, and empty if the options do not ask to keep
    to the range. A value beyond the range of one profile alone is refused where that profile's
    settings are resolved.
    """
    if not options.within_measured:
        return {}
    known = [MeasuredRange.of(p).limits() for p in profiles]
    names = set.intersection(*(set(limits) for limits in known)) if known else set()
    return {name: max(limits[name] for limits in known) for name in names}


def measured_values(name: str, values: Sequence[V], limits: Mapping[str, int]) -> tuple[V, ...]:
    """Those of the usual values of a setting that are within the range."""
    limit = limits.get(name)
    if limit is None:
        return tuple(values)
    return tuple(v for v in values if not is_number(v) or v <= limit) or tuple(values[:1])


def check_measured(name: str, decision: Decision, limits: Mapping[str, int]) -> None:
    """Refuse values that lead beyond the measured range.

    Raises
    ------
    ScenarioError
        Naming the setting, the value and the largest that is within the range.
    """
    limit = limits.get(name)
    if limit is None:
        return
    values = [decision.high] if isinstance(decision, Range) else decision.grid()
    for value in values:
        if is_number(value) and value > limit:
            raise ScenarioError(
                f"{name} is to be searched up to {value}; the profiles were measured up to "
                f"{limit}: lower it, or give --beyond-measured to rely on extrapolated steps"
            )
