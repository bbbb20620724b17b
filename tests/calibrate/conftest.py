from __future__ import annotations

from pathlib import Path

import pytest

from qsim.calibrate.fit.fitting import FitResult, fit
from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.read import read_recording
from tests.calibrate.synthetic import true_profile, write_recording


@pytest.fixture(scope="session")
def recording_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic recording with GPU spans; do not change it."""
    return write_recording(tmp_path_factory.mktemp("recordings") / "toy--bf16")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same server recorded without launch times and GPU spans; do not change it."""
    return write_recording(tmp_path_factory.mktemp("recordings") / "toy--plain", gpu_spans=False)


@pytest.fixture(scope="session")
def recorded(recording_folder: Path) -> Recording:
    return read_recording(recording_folder)


@pytest.fixture(scope="session")
def fitted(recorded: Recording) -> FitResult:
    return fit([recorded])


@pytest.fixture(scope="session")
def inferred(plain_folder: Path) -> FitResult:
    return fit([read_recording(plain_folder)], host_from=true_profile().host, held_out=False)
