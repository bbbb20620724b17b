"""A study on a Dask cluster of two processes is the one of this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qsim.optimize.study.studying import study_for
from tests.optimize.study.test_studying import SMALL, asked

FEW = replace(SMALL, requests=60, rate_shares=(0.5,), concurrency=(4,), cvs=(4.0,), prompts=(256,))


@pytest.mark.slow
def test_a_study_is_the_same_on_dask(dask_address: str, tmp_path: Path) -> None:
    scenario = asked(methods=["bf16", "fp8-w8a8"], levels=["application", "workload"],
                     applications=["chat"])  # fmt: skip
    expected = study_for(scenario, sizes=FEW).to_dict()
    assert expected["runs"]
    journal = tmp_path / "journal.jsonl"
    assert study_for(scenario, sizes=FEW, dask=dask_address, journal=journal).to_dict() == expected
    # what ran there is kept, and goes on here
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    assert len(lines) > 10
    journal.write_text("".join(lines[:5]), "utf-8")
    again = study_for(scenario, sizes=FEW, journal=journal, resume=True)
    assert again.to_dict() == expected
