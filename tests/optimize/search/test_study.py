"""A study is the same wherever it is measured, and however often it is interrupted."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from qsim.errors import NotKeptWarning, QsimError, ScenarioError
from qsim.interrupts import ended_by_signals
from qsim.optimize.search import storage_journal
from qsim.optimize.search.executor import SerialExecutor, TaskExecutor
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.pareto import hypervolume
from qsim.optimize.search.space import Choices, Range, Space
from qsim.optimize.search.storage import open_storage
from qsim.optimize.search.storage_journal import CheckedJournal
from qsim.optimize.search.study import (
    Judgement,
    Objective,
    Record,
    StudyInterrupted,
    StudySettings,
    StudyStoppedError,
    run_study,
)

SPACE = Space(
    {
        "x": Range(0, 40),
        "y": Range(1.0, 100.0, log=True),
        "method": Choices(("a", "b", "c")),
        "seats": Choices((64, 128, 256)),
    }
)


def measured(x: int, y: float, method: str, seats: int, marker: Path | None = None) -> float:
    if marker is not None and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if method == "c" and x > 30:
        raise ScenarioError(f"x is {x}; must be <= 30 with c")
    return abs(x - 17) + y / 10 + {"a": 0.0, "b": 3.0, "c": 6.0}[method] + seats / 256


@dataclass
class Toy:
    """Two objectives, one constraint, and a corner where everything fails."""

    space: Space = SPACE
    objectives: Sequence[Objective] = (Objective("distance"), Objective("gain", maximize=True))
    marker: Path | None = None
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def key(self, params: dict[str, Any]) -> Any:
        return tuple(params.values())

    def submit(self, executor: TaskExecutor, params: dict[str, Any]) -> Future[Any]:
        self.submitted.append(params)
        return executor.submit(measured, **params, marker=self.marker)

    def judge(self, params: dict[str, Any], outcome: float) -> Judgement:
        gain = {"a": 1.0, "b": 5.0, "c": 20.0}[params["method"]] + params["y"] ** 0.5
        return Judgement((outcome, gain), {"near": outcome / 30 - 1}, {"outcome": outcome})


def study(
    settings: StudySettings, jobs: int = 1, dask: str | None = None, **more: Any
) -> list[Record]:
    with open_executor(jobs, dask=dask) as executor:
        return run_study(more.pop("problem", None) or Toy(), settings, executor, **more)[0]


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_processes_and_dask_give_the_same_study(sampler: str, dask_address: str) -> None:
    settings = StudySettings(sampler, trials=36, seed=3, batch=6, population=8)
    here = study(settings)
    assert [r.number for r in here] == list(range(36))
    assert len({tuple(r.params.values()) for r in here}) > 20
    assert study(settings, jobs=2) == here
    assert study(settings, dask=dask_address) == here
    assert study(replace(settings, seed=4)) != here


def test_a_worker_killed_in_mid_study_changes_nothing(tmp_path: Path) -> None:
    settings = StudySettings(trials=12, batch=4, population=4)
    problem = Toy(marker=tmp_path / "killed")
    assert study(settings, jobs=2, problem=problem) == study(settings)
    assert (tmp_path / "killed").exists()


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which pytest would obey."""


JOURNAL, SQLITE = "{}/study.journal", "sqlite:///{}/study.db"


@pytest.mark.parametrize(
    ("sampler", "storage", "calls"),
    [
        *((s, JOURNAL, calls) for s in ("nsga2", "tpe") for calls in (3, 61)),
        ("nsga2", SQLITE, 61),
    ],
)
@pytest.mark.slow
def test_an_interrupted_study_goes_on_as_if_nothing_had_happened(
    sampler: str, storage: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    designed = [{"x": 17, "y": 1.0, "method": m, "seats": 64} for m in "abc"]
    settings = StudySettings(sampler, trials=24, seed=1, batch=5, population=6)
    expected = study(settings, designed=designed)
    kept = replace(settings, storage=storage.format(tmp_path))
    suggest, left = optuna.trial.Trial._suggest, [calls]

    def interrupted(self: Any, name: str, distribution: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted
        return suggest(self, name, distribution)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "_suggest", interrupted)
        with pytest.raises(Interrupted):
            study(kept, designed=designed)
    assert study(replace(kept, resume=True), designed=designed) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_waits_for_the_end_of_a_write(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StudySettings(trials=8, batch=4, population=4)
    kept = replace(settings, storage=str(tmp_path / "study.journal"))
    usual = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for n in usual:
        signal.signal(n, signal.SIG_DFL)  # ignored under nohup, and then it stays so
    append, calls = CheckedJournal.append_logs, [0]

    def interrupted(self: Any, logs: Any) -> None:
        calls[0] += 1
        if calls[0] == 12:
            os.kill(os.getpid(), number)
        append(self, logs)

    with monkeypatch.context() as patch:
        patch.setattr(CheckedJournal, "append_logs", interrupted)
        with pytest.raises(KeyboardInterrupt), ended_by_signals():
            study(kept)
    stored = optuna.load_study(study_name="qsim", storage=open_storage(kept.storage)).trials
    assert stored
    assert all(len(t.params) == 4 for t in stored), "each is stored to its end"
    assert [p.name for p in tmp_path.iterdir()] == ["study.journal"]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    for n, handler in usual.items():
        signal.signal(n, handler)
    assert study(replace(kept, resume=True)) == study(settings)


@pytest.mark.parametrize("told", [1, 7, 10, 23])
def test_interrupted_between_two_results(told: int, tmp_path: Path) -> None:
    settings = StudySettings(trials=24, seed=1, batch=5, population=6)
    kept = replace(settings, storage=str(tmp_path / "study.journal"))

    def stop(share: float, text: str) -> None:
        if text.startswith(f"{told} of"):
            raise Interrupted

    with pytest.raises(Interrupted):
        study(kept, progress=stop)
    problem = Toy()
    assert study(replace(kept, resume=True), problem=problem) == study(settings)
    assert 0 < len(problem.submitted) <= 24 - told
    # more trials of a finished study: the ones before stay
    longer = study(replace(kept, resume=True, trials=30))
    assert longer == study(replace(settings, trials=30))[:24] + longer[24:]


@dataclass
class Slow(Toy):
    """The first trial of the second batch does not end before the study is interrupted."""

    def submit(self, executor: TaskExecutor, params: dict[str, Any]) -> Future[Any]:
        slow = len(self.submitted) == 5
        self.submitted.append(params)
        return executor.submit(never if slow else measured, **params)


def never(**params: Any) -> float:
    time.sleep(3600.0)
    return measured(**params)


def test_each_trial_is_kept_as_soon_as_it_is_measured(tmp_path: Path) -> None:
    """Also when an earlier one is not, and after an interruption that leaves such a gap."""
    settings = StudySettings(trials=15, seed=1, batch=5, population=6)
    kept = replace(settings, storage=str(tmp_path / "study.journal"))
    finished: list[list[int]] = []

    def look(share: float, text: str) -> None:
        trials = optuna.load_study(study_name="qsim", storage=open_storage(kept.storage)).trials
        finished.append([t.number for t in trials if t.state.is_finished()])
        assert len(finished[-1]) == int(text.split()[0])
        if text.startswith("8 of"):
            raise KeyboardInterrupt

    with pytest.raises(StudyInterrupted) as e:
        study(kept, jobs=2, problem=Slow(), progress=look)
    assert len(e.value.records) == 8
    assert 5 not in finished[-1], "it was under way"
    whole = study(settings)
    assert e.value.records == [whole[n] for n in finished[-1]]
    problem = Toy()
    assert study(replace(kept, resume=True), problem=problem) == whole
    assert len(problem.submitted) <= 15 - 8


def test_a_full_disk_does_not_end_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = StudySettings(trials=15, seed=1, batch=5, population=6)
    kept = replace(settings, storage=str(tmp_path / "study.journal"))
    append, left = storage_journal.append_lines, [80]

    def full(path: Path, *args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return append(path, *args, **more)

    whole = study(settings)
    with monkeypatch.context() as patch:
        patch.setattr(storage_journal, "append_lines", full)
        with pytest.warns(NotKeptWarning, match=r"journal': No space left on device; trials"):
            assert study(kept) == whole
    problem = Toy()
    assert study(replace(kept, resume=True), problem=problem) == whole
    assert 0 < len(problem.submitted) < 15, "what could be kept was"


def test_a_database_that_fails_ends_a_study_with_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    settings = StudySettings(trials=15, batch=5, storage=f"sqlite:///{tmp_path}/study.db")
    tell, left = optuna.Study.tell, [7]

    def full(self: Any, *args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OperationalError("INSERT", {}, Exception("database or disk is full"))
        return tell(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", full)
        with pytest.raises(StudyStoppedError, match=r"can no longer be kept: .*disk is full") as e:
            study(settings)
    assert len(e.value.records) == 7
    assert study(replace(settings, resume=True)) == study(replace(settings, storage=None))


def test_trials_of_another_process_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StudySettings(trials=15, batch=5, storage=f"sqlite:///{tmp_path}/study.db")
    ask, calls = optuna.Study.ask, [0]

    def intruded(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            ask(self)
        return ask(self, *args)

    monkeypatch.setattr(optuna.Study, "ask", intruded)
    with pytest.raises(QsimError, match="gets trials of another process"):
        study(settings)


def test_a_trial_that_another_process_has_finished_is_taken(tmp_path: Path) -> None:
    settings = StudySettings(trials=10, batch=5, storage=f"sqlite:///{tmp_path}/study.db")
    whole = study(replace(settings, storage=None))

    def other(share: float, text: str) -> None:
        if text.startswith("6 of"):
            there = optuna.load_study(study_name="qsim", storage=settings.storage)
            there.tell(7, list(whole[7].values or ()))

    assert [r.values for r in study(settings, progress=other)] == [r.values for r in whole]


def test_a_damaged_journal_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    settings = StudySettings(trials=7, batch=3, storage=str(path))
    study(settings)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20] + lines[21:]))
    with pytest.raises(ScenarioError, match="is damaged: line 21"):
        study(replace(settings, resume=True))


def test_what_is_known_is_not_measured_again() -> None:
    space = Space({**SPACE.decisions, "x": Choices((1, 2)), "y": Choices((1.0,))})
    problem = Toy(space)
    records = study(StudySettings(trials=60, population=6), problem=problem)
    keys = [tuple(r.params.values()) for r in records]
    assert len(keys) == 60
    assert len(problem.submitted) == len(set(keys)) <= 18
    by_key = {k: r.values for k, r in zip(keys, records, strict=True)}
    assert all(by_key[k] == r.values for k, r in zip(keys, records, strict=True))


def test_grid_measures_every_combination_once() -> None:
    space = Space({**SPACE.decisions, "x": Range(0, 40, 20), "y": Choices((1.0, 9.0))})
    problem = Toy(space)
    records = study(StudySettings("grid", trials=5), problem=problem)
    assert [r.params for r in records] == list(space.grid())
    assert len(problem.submitted) == len(records) == 3 * 2 * 3 * 3
    failed = [r for r in records if not r.complete]
    assert {r.params["x"] for r in failed} == {40}
    assert failed[0].reason == "x is 40; must be <= 30 with c"
    assert not any(r.feasible for r in failed)
    with pytest.raises(ScenarioError, match=r"y: range 1:100:log cannot be enumerated"):
        study(StudySettings("grid"))


def test_designed_points_come_first_and_constraints_are_kept() -> None:
    designed = [{"x": 30, "y": 100.0, "method": "c", "seats": 64}]
    records = study(StudySettings(trials=3), designed=designed)
    assert records[0].params == designed[0]
    outcome = measured(**designed[0])
    assert records[0].violations == {"near": outcome / 30 - 1}
    assert records[0].figures == {"outcome": outcome}
    assert all(r.feasible == (r.figures["outcome"] <= 30) for r in records if r.complete)


def test_nsga2_and_tpe_beat_chance() -> None:
    """With as many trials, their fronts dominate more than that of random search."""
    volume = dict.fromkeys(("nsga2", "tpe", "random"), 0.0)
    for sampler in volume:
        for seed in (1, 3):
            records = study(StudySettings(sampler, trials=80, seed=seed))
            values = np.array([(r.values[0], -r.values[1]) for r in records if r.values])
            volume[sampler] += hypervolume(values, np.array([40.0, 0.0]))
    assert volume["nsga2"] > volume["random"]
    assert volume["tpe"] > volume["random"]


def test_a_study_is_not_overwritten_nor_mixed_with_another(tmp_path: Path) -> None:
    settings = StudySettings(trials=4, storage=str(tmp_path / "a" / "study.journal"))
    first = study(settings, identity={"trace": "x", "parts": (1, 2)})
    with pytest.raises(ScenarioError, match="exists already; go on with it"):
        study(settings)
    again = replace(settings, resume=True)
    assert study(again, identity={"trace": "x", "parts": (1, 2)}) == first
    with pytest.raises(ScenarioError, match="another trace: trace was 'x' and is now 'y'"):
        study(again, identity={"trace": "y", "parts": (1, 2)})
    with pytest.raises(ScenarioError, match="another seed"):
        study(replace(again, seed=9), identity={"trace": "x", "parts": (1, 2)})
    other = study(replace(settings, name="other", seed=9))
    assert other != first


def test_optuna_opens_what_is_kept(tmp_path: Path) -> None:
    """As optuna-dashboard does: by the URL of a database, or the path of a journal."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    url, path = f"sqlite:///{tmp_path}/study.db", str(tmp_path / "study.journal")
    expected = study(StudySettings(trials=6, storage=url, name="chat"))
    study(StudySettings(trials=6, storage=path, name="chat"))
    for storage in (url, JournalStorage(JournalFileBackend(path))):
        opened = optuna.load_study(study_name="chat", storage=storage)
        assert [t.params for t in opened.trials] == [r.params for r in expected]
        assert [t.values and tuple(t.values) for t in opened.trials] == [r.values for r in expected]
        assert opened.metric_names == ["distance", "gain"]
        assert opened.trials[0].constraints == expected[0].violations


def test_a_torn_line_at_the_end_of_a_journal_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    settings = StudySettings(trials=7, batch=3, storage=str(path))
    whole = study(settings)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.7)])
    assert study(replace(settings, resume=True)) == whole


@pytest.mark.parametrize(
    ("storage", "words"),
    [("nodriver://x", "storage URL"), ("sqlite:////nowhere/at/all.db", "cannot be opened")],
)
def test_a_storage_that_cannot_be_opened_is_an_error(storage: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        study(StudySettings(trials=1, storage=storage))


def test_a_file_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(ScenarioError, match="no Optuna journal"):
        study(StudySettings(trials=1, storage=str(path)))
    assert path.read_text() == "dear diary"


def test_errors_of_the_machinery_end_the_study() -> None:
    class Broken(Toy):
        def submit(self, executor: TaskExecutor, params: dict[str, Any]) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(QsimError("a worker process died 3 times"))
            return future

    with pytest.raises(QsimError, match="died 3 times"):
        run_study(Broken(), StudySettings(trials=2), SerialExecutor())


@pytest.mark.parametrize(
    "wrong",
    [{"sampler": "cmaes"}, {"trials": 0}, {"batch": True}, {"population": 1}, {"resume": True}],
)
def test_wrong_settings_name_the_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=next(iter(wrong))):
        StudySettings(**wrong)
