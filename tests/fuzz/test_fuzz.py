"""Every case of the corpus and those that are drawn end in a result or in a line of error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.fuzz import worker
from tests.fuzz.cases import COMMANDS, Case, plain
from tests.fuzz.run import CORPUS, drawn, keep, run
from tests.fuzz.worker import judge

#: cases that are drawn; ``make fuzz N=100000 SEED=7`` runs any number
DRAWN = int(os.environ.get("QSIM_FUZZ", "1000"))
SEED = int(os.environ.get("QSIM_FUZZ_SEED", "0"))


def _report(failed: list[tuple[Case, list[str]]]) -> str:
    kept = [(keep(case, found, Path("fuzz-failures")), found) for case, found in failed[:20]]
    lines = [f"{path}: {'; '.join(found)}" for path, found in kept]
    return "\n".join(
        [f"{len(failed)} cases failed; move them to {CORPUS.name}/ to keep them", *lines]
    )


def test_what_was_once_found_stays_mended() -> None:
    cases = [Case.from_json(p.read_text(encoding="utf-8")) for p in sorted(CORPUS.glob("*.json"))]
    assert cases
    failed = run(cases, workers=2)
    assert not failed, _report(failed)


def test_drawn_cases() -> None:
    failed = run(drawn(DRAWN, SEED), workers=max(2, len(os.sched_getaffinity(0))))
    assert not failed, _report(failed)


def test_a_case_depends_on_the_seed_alone() -> None:
    assert [c.to_json() for c in drawn(20, 3)] == [c.to_json() for c in drawn(20, 3)]
    assert [c.to_json() for c in drawn(20, 3)] != [c.to_json() for c in drawn(20, 4)]
    case = next(iter(drawn(1, 5)))
    assert Case.from_json(case.to_json()).files == case.files


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:40])
def test_good_inputs_are_answered(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds of the mutations are good: else only one error would be tried."""
    case = plain(line)
    for name, data in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    code, _, err, raised = worker._call(case.argv)
    expected = 2 if line.startswith("quality toy-1b") else 0  # a profile without measured quality
    assert (code, raised) == (expected, None), err


@pytest.mark.parametrize(
    ("argv", "finding"),
    [
        (["@raise"], "raised ZeroDivisionError"),
        (["@outside"], "outside: open"),
        (["@escape"], "control character"),
        (["@silent"], "without a line of error"),
        (["@memory"], "memory"),
    ],
)
def test_the_judge_sees_what_is_wrong(
    argv: list[str], finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"

    def call(words: list[str]) -> tuple[int, str, str, BaseException | None]:
        if words == ["@raise"]:
            try:
                1 / 0  # noqa: B018
            except ZeroDivisionError as e:
                return 1, "", "", e
        if words == ["@outside"]:
            beside.write_text("x")
        if words == ["@memory"]:
            assert len(bytearray(b"x") * (100 << 20)) > 0
        return (
            (2, "", "", None) if words == ["@silent"] else
            (0, "\x1b[31m" if words == ["@escape"] else "", "", None)
        )  # fmt: skip

    sys.addaudithook(worker._audit)
    monkeypatch.setattr(worker, "_call", call)
    monkeypatch.setattr(worker, "MEMORY", 50 << 20)
    before = Path.cwd()
    try:
        found = judge(Case(argv), tmp_path / "case")
    finally:
        os.chdir(before)
    assert any(finding in f for f in found), found
