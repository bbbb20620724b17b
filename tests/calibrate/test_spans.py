"""``tools/spans.py``: how well fitted spans describe each load."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from qsim.calibrate.fit import contexts
from tests.calibrate.stub import script


@pytest.fixture(name="script")
def spans(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(contexts, "PART", contexts.PART)  # the script sets it
    return script("spans")


def cells(out: str, recording: str, load: str) -> list[str]:
    (row,) = [x for x in out.splitlines() if x.startswith(f"| {recording} | {load} |")]
    return [c.strip() for c in row.split("|")[3:-1]]


@pytest.mark.slow
def test_every_load_of_both_recordings(
    script: ModuleType,
    recording_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(recording_folder, tmp_path / "other")
    assert script.main([str(recording_folder), "--check", str(other), "--part", "0"]) == 0
    out = capsys.readouterr().out
    mine, same = (cells(out, name, "ctx8") for name in ("toy--bf16", "other"))
    assert mine == same
    error, steps = re.fullmatch(r"([+-][0-9.]+)% of ([0-9,]+)", mine[0]).groups()  # type: ignore[union-attr]
    assert abs(float(error)) < 0.5  # the contexts as recorded are what made these spans
    assert int(steps.replace(",", "")) > 30
    assert 0.6 < float(mine[3]) < 0.9  # 8 requests of one length fill the processors
    # counted as those of traffic, the same steps are told to take longer
    assert script.main([str(recording_folder), "--part", "1"]) == 0
    more = cells(capsys.readouterr().out, "toy--bf16", "ctx8")
    assert float(more[0].partition("%")[0]) > float(error) + 0.5


@pytest.mark.parametrize(
    ("args", "words"), [(["no/such"], "no/such"), (["x", "--part", "2"], "--part is 2")]
)
def test_wrong_options(
    script: ModuleType, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as e:
        script.main(args)
    assert e.value.code == 2
    assert words in capsys.readouterr().err
