"""The exceptions that qsim raises, as one tree.

::

    QsimError                 anything qsim raises on purpose; the CLI prints it, no traceback
    ├── InputError            something the caller gave is wrong            (exit code 2)
    │   ├── TraceError        a request trace cannot be read or used
    │   ├── ProfileError      a profile is unknown, malformed or unusable here
    │   ├── ScenarioError     an option, an SLO or a scenario file is wrong
    │   └── RecordingError    a recording of a server is malformed
    ├── InfeasibleError       the question is well posed; its answer is "no" (exit code 3)
    ├── OutputError           a file cannot be written                      (exit code 1)
    ├── CalibrationError      a server could not be measured or fitted       (exit code 4)
    └── MissingExtraError     an optional dependency is not installed        (exit code 5)

Messages give the field, the value, what is allowed and what to do next.
"""

from __future__ import annotations


class QsimError(Exception):
    """Base class of every exception that qsim raises on purpose."""

    exit_code = 1


class InputError(QsimError):
    """Something that the caller gave is wrong."""

    exit_code = 2


class TraceError(InputError):
    """A request trace cannot be read or used."""


class ProfileError(InputError):
    """A profile is unknown, malformed or cannot be used for what was asked."""


class ScenarioError(InputError):
    """An option, an SLO or a scenario file is wrong."""


class RecordingError(InputError):
    """A recording of a real server is malformed."""


class InfeasibleError(QsimError):
    """The question is well posed and no configuration satisfies it."""

    exit_code = 3


class OutputError(QsimError):
    """A file cannot be written; nothing else is wrong."""


class NotKeptWarning(UserWarning):
    """Work goes on, and what was to be kept of it can no longer be; the CLI ends with 1."""


class CalibrationError(QsimError):
    """A real server could not be measured, or its measurements not fitted."""

    exit_code = 4


class MissingExtraError(QsimError):
    """An optional dependency is not installed; the message names the extra, or the package."""

    exit_code = 5

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        wanted = package if extra is None else f'"qsim[{extra}]"'
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"run  pip install {wanted}"
        )
        self.package = package
        self.extra = extra
