from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import TRACE, write
from tests.make_profile import make_profile


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Five requests, two of them at t = 0."""
    return write(tmp_path / "trace.csv", TRACE)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A profile of one's own, in a file."""
    path = tmp_path / "toy.json"
    make_profile(method="fp8-w8a8").save(path)
    return path


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """The same model without quantization."""
    path = tmp_path / "slower.json"
    make_profile(method="bf16", decode_ms=7.0).save(path)
    return path
