"""A small study of shipped profiles: its levels, findings and decisions, and where they lead."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qsim
from qsim.errors import ProfileError, ScenarioError
from qsim.optimize.study.application_claims import figure_of, run_of
from qsim.optimize.study.comparing import QUALITY, maximized
from qsim.optimize.study.figures import FIGURES
from qsim.optimize.study.result import StudyResult
from qsim.optimize.study.runner import Sizes
from qsim.optimize.study.studying import study_for
from qsim.scenario import Scenario
from tests.cli.helpers import qsim as command

SMALL = Sizes(
    requests=310,
    rate_shares=(0.2, 0.6, 1.1),
    concurrency=(1, 8, 64),
    batch=(16,),
    most_clients=128,
    cvs=(0.5, 4.0),
    prompts=(256, 4096),
    outputs=(64,),
    grid_clients=8,
)
METHODS = ["bf16", "fp8-w8a8", "awq-w4a16", "nvfp4-w4a16"]


def asked(**study: Any) -> Scenario:
    section = {"model": "llama-3.1-8b", "gpus": ["h200_sxm"], "methods": METHODS,
               "applications": ["chat", "code"], **study}  # fmt: skip
    return Scenario.from_dict({"study": section})


@pytest.fixture(scope="module")
def small() -> StudyResult:
    return study_for(asked(), sizes=SMALL)


@pytest.fixture(scope="module")
def sharded() -> StudyResult:
    scenario = asked(
        model="llama-3.1-70b",
        methods=["bf16", "awq-w4a16", "fp8-w8a8"],
        gpus=["h200_sxm", "a100_sxm"],
        levels=["parallelism", "hardware"],
    )
    return study_for(scenario, sizes=SMALL)


def again(line: str) -> dict[str, Any]:
    """What a command says, as JSON."""
    words = shlex.split(line)
    assert words[0] == "qsim"
    if words[1] == "simulate":  # how machines differ is no part of a study's runs
        words += ["--machines", "0"]
    result = command(*words[1:])
    assert result.exit_code == 0, (line, result.output)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of a study that a summary tells."""
    known = {n: summary[n] for n in FIGURES if n in summary}
    done = summary["completed"]
    return known | {
        "joules_per_request": summary["energy_j"] / done,
        "output_throughput_per_gpu": summary["output_throughput"] / summary["gpus"],
        "mean_concurrency": summary["request_throughput"] * summary["mean_e2el_ms"] / 1000,
    }


#: figures of the application level that are those of a run under another name
SAME = {"highest_rps": "request_throughput"}


def check_findings(study: StudyResult) -> None:
    assert study.findings
    seen: dict[str, dict[str, float]] = {}
    for finding in study.findings:
        values: list[float] = []
        for run in finding.runs:
            line = study.runs[run].command
            assert line in finding.commands
            if line not in seen:
                seen[line] = figures(again(line))
            for name, value in seen[line].items():
                expected = study.runs[run].values[name]
                assert value == pytest.approx(expected, rel=1e-5), (line, name)
            values.append(seen[line][SAME.get(finding.figure, finding.figure)])
        for line in finding.commands:
            if line.startswith("qsim quality"):
                values += [m["mean_pct"] for m in again(line)["methods"]] + [100.0]
        for label, band in finding.numbers.items():
            assert any(band.value == pytest.approx(v, rel=1e-5) for v in values), (
                finding.statement, label,
            )  # fmt: skip


def test_every_finding_is_simulated_again_from_its_commands(small: StudyResult) -> None:
    assert {"crossing", "gain"} <= {f.kind for f in small.findings}
    check_findings(small)


def test_findings_of_sharding_and_gpus_are_simulated_again(sharded: StudyResult) -> None:
    assert {"sharding", "hardware"} <= {f.kind for f in sharded.findings}
    check_findings(sharded)


def test_no_finding_lies_within_the_errors(small: StudyResult, sharded: StudyResult) -> None:
    for study in (small, sharded):
        for f in study.findings:
            assert 100 * (f.ratio - 1) > f.error_percent, f.statement
            if len(f.numbers) == 2:
                a, b = f.numbers.values()
                assert a.apart(b), f.statement


def test_every_level_has_rows_whose_bands_hold_the_stated_error(small: StudyResult) -> None:
    errors = {(p.profile, ".".join(p.vllm_version.split(".")[:2])): p.error_percent
              for p in small.provenance}  # fmt: skip
    for rows in (small.application, small.workload, small.parallelism, small.hardware):
        assert rows
        for row in rows:
            run = small.runs[row.run]
            assert (run.gpu, run.method) == (row.gpu, row.method)
            band = row.figures["mean_tpot_ms"]
            assert band is not None
            assert band.value == pytest.approx(run.values["mean_tpot_ms"], rel=1e-5)
            of_profile = errors[run.profile, run.vllm_version]
            error = of_profile["mean"]
            assert band.high / band.value == pytest.approx(1 + error / 100)
            tail, mean = row.figures["p99_ttft_ms"], row.figures["mean_ttft_ms"]
            if tail is not None and mean is not None:  # with the error of the sample on top
                p99 = 1 + of_profile["p99"] / 100
                assert tail.high / tail.value >= p99 * (1 - 1e-9)


def test_few_requests_have_no_tail(small: StudyResult) -> None:
    few = [r for r in small.workload if r.axis == "concurrency" and r.x == 1]
    assert few
    assert all(small.runs[r.run].requests < 299 for r in few)
    assert all(r.figures["p99_ttft_ms"] is None for r in few)


def test_methods_of_a_task_answer_the_same_requests_at_one_rate(small: StudyResult) -> None:
    for task in small.tasks:
        rows = [r for r in small.application if r.task == task.name]
        assert [r.method for r in rows] == METHODS
        assert len({r.rate_rps for r in rows}) == 1
        assert len({small.runs[r.run].trace for r in rows}) == 1
        slowest = min(r.highest_rps.value for r in rows if r.highest_rps)
        assert rows[0].rate_rps == pytest.approx(0.6 * slowest, rel=0.01)


def test_the_front_is_of_methods_that_nobody_beats(small: StudyResult) -> None:
    for task in small.tasks:
        rows = [r for r in small.application if r.task == task.name]
        points = {r.method: (r.quality.value, r.figures["joules_per_request"].value) for r in rows
                  if r.quality and r.figures["joules_per_request"]}  # fmt: skip
        for row in rows:
            quality, energy = points[row.method]
            beaten = any(
                q >= quality and e <= energy and (q, e) != (quality, energy)
                for q, e in points.values()
            )
            assert row.on_front is not beaten


def test_decisions_take_the_best_above_the_floor_and_name_who_is_as_good() -> None:
    study = study_for(asked(min_quality=95.0, levels=["application"]), sizes=SMALL)
    assert len(study.decisions) == 2 * 6
    for d in study.decisions:
        rows = [r for r in study.application if r.task == d.traffic and r.quality
                and r.quality.low >= 95.0]  # fmt: skip
        bands = {r.method: figure_of(r, d.figure) for r in rows}
        known = {m: b for m, b in bands.items() if b is not None}
        pick = max if maximized(d.figure) else min
        assert d.method == pick(known, key=lambda m: known[m].value)
        assert set(d.as_good) == {
            m for m, b in known.items() if m != d.method and not b.apart(d.value)
        }
        if d.figure != QUALITY:
            assert set(d.runs) == {run_of(r, d.figure) for r in rows}


def test_all_layouts_of_the_parallelism_level_fill_the_same_gpus(sharded: StudyResult) -> None:
    for gpu, gpus in (("h200_sxm", 4), ("a100_sxm", 4)):
        rows = [r for r in sharded.parallelism if r.gpu == gpu]
        assert {r.gpus for r in rows} == {gpus}
        assert all(r.tensor_parallel_size * r.replicas == gpus for r in rows)
        busy = {sharded.runs[r.run].trace for r in rows if r.load == "busy"}
        assert len(busy) == 1


def test_gpus_are_compared_with_servers_of_one_size(sharded: StudyResult) -> None:
    assert {r.tensor_parallel_size for r in sharded.hardware} == {2}
    assert {r.gpu for r in sharded.hardware} == {"h200_sxm", "a100_sxm"}
    for row in sharded.hardware:
        assert row.idle_w < row.cap_w
        measured = next(p for p in sharded.provenance if p.profile == sharded.runs[row.run].profile)
        assert (row.kv_tokens.low < row.kv_tokens.high) is (measured.source == "transferred")


def test_servers_of_several_gpus_are_transferred_where_none_was_measured(
    small: StudyResult,
) -> None:
    assert {(r.tensor_parallel_size, r.replicas) for r in small.parallelism} == {
        (1, 4), (2, 2), (4, 1)
    }  # fmt: skip
    sources = {p.tensor_parallel_size: p.source for p in small.provenance
               if p.gpu == "h200_sxm" and p.method == "nvfp4-w4a16"}  # fmt: skip
    assert sources[1] in ("measured", "carried")
    assert sources[2] == sources[4] == "transferred"
    for finding in small.findings:
        rests = {p.source for p in small.provenance
                 if p.profile in {small.runs[r].profile for r in finding.runs}}  # fmt: skip
        assert ("transferred, not measured" in finding.statement) is ("transferred" in rests)


def test_a_profile_of_ones_own_for_one_size_has_no_parallelism() -> None:
    scenario = Scenario.from_dict({"study": {
        "profiles": ["h200_sxm/llama-3.1-8b/bf16"], "levels": ["parallelism"],
    }})  # fmt: skip
    study = study_for(scenario, sizes=SMALL)
    assert not study.parallelism
    assert any(n.startswith("parallelism: there are profiles of llama-3.1-8b for one")
               for n in study.notes)  # fmt: skip


def test_one_gpu_is_compared_with_the_others(small: StudyResult) -> None:
    assert small.gpus == ("h200_sxm",)
    assert {r.gpu for r in small.hardware} == {"h200_sxm", "h100_sxm", "a100_sxm"}
    assert {r.gpu for r in small.application} == {"h200_sxm"}


def test_the_answer_does_not_depend_on_jobs_and_resumes(tmp_path: Path) -> None:
    scenario = asked(levels=["application"], methods=["bf16", "fp8-w8a8"], applications=["code"])
    journal = tmp_path / "runs.jsonl"
    first = study_for(scenario, sizes=SMALL, journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(first.runs) == 4
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed while it wrote the last
    with pytest.raises(ScenarioError, match=r"3 finished runs of a study .*--resume"):
        study_for(scenario, sizes=SMALL, journal=journal)
    resumed = study_for(scenario, sizes=SMALL, journal=journal, resume=True, jobs=2)
    assert resumed.to_dict() == first.to_dict()
    assert len(journal.read_bytes().splitlines()) == 4
    (note,) = (n for n in first.notes if n.startswith("machine: on your h200_sxm"))
    ends = [float(x) for x in re.findall(r"x(\d+\.\d\d)", note)]
    assert len(ends) >= 6
    assert all(low < high for low, high in zip(ends[::2], ends[1::2], strict=True))


def test_other_requests_are_simulated_anew_on_resuming(tmp_path: Path) -> None:
    scenario = asked(levels=["application"], methods=["bf16"], applications=["code"])
    journal = tmp_path / "runs.jsonl"
    first = study_for(scenario, sizes=SMALL, journal=journal)
    other = study_for(scenario.updated({"seed": 1}), sizes=SMALL, journal=journal, resume=True)
    anew, run = next(iter(other.runs.values())), next(iter(first.runs.values()))
    assert anew.values != run.values
    assert "--seed 1" in anew.command


def test_a_file_of_traffic_is_made_faster_and_keeps_its_gaps(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    _write(path)
    scenario = asked(levels=["workload"], methods=["bf16", "fp8-w8a8"]).updated(
        {"traffic.trace": str(path)}
    )
    study = study_for(scenario, sizes=SMALL)
    assert {r.axis for r in study.workload} == {"rate", "concurrency", "lengths", "batch"}
    assert any("burstiness" in n for n in study.notes)
    row = next(r for r in study.workload if r.axis == "rate")
    run = study.runs[row.run]
    assert f"{path} --speed" in run.command
    assert figures(again(run.command))["mean_ttft_ms"] == pytest.approx(run.values["mean_ttft_ms"])


def _write(path: Path) -> None:
    trace = qsim.load_trace("azure-conv-2023:requests=400,rate=4")
    rows = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    lines = [f"{a},{p},{o}" for a, p, o in rows]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study.applications": ["chatt"]}, "task 'chatt' is unknown; did you mean chat"),
        ({"traffic.trace": "azure-conv-2023:rate=5"}, "study sets rate itself"),
        ({"traffic.trace": "azure-conv-2023", "traffic.head": 5}, "study sets head itself"),
        ({"traffic.speed": 2.0}, "traffic.speed is given, and study does not take it"),
        ({"traffic.concurrency": 4}, "traffic.concurrency is given"),
        ({"traffic.growth": 2.0}, "study varies the rate itself"),
        ({"slos": ["ttft:p99:500"]}, "slos is given, and study does not read it"),
    ],
)
def test_what_a_study_cannot_take_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        qsim.study(asked().updated(change))


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"no profile of model 'llama-3.1-9b'"):
        qsim.study(model="llama-3.1-9b")
    with pytest.raises(ScenarioError, match="levels"):
        qsim.study(model="llama-3.1-8b", levels=["galaxy"])
    with pytest.raises(TypeError, match="scenario"):
        qsim.study(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no argument 'gpu'"):
        qsim.study(model="llama-3.1-8b", gpu="h200_sxm")  # type: ignore[call-arg]


def test_a_run_beyond_what_was_measured_carries_no_finding(small: StudyResult) -> None:
    from qsim.optimize.study.findings import usable_runs

    run = next(iter(small.runs.values()))
    answered = dict.fromkeys(small.runs, 1.0)
    assert run.id in usable_runs(small.runs, answered)
    far = {**small.runs, run.id: replace(run, beyond_measured=0.5)}
    assert run.id not in usable_runs(far, answered)
    assert run.id not in usable_runs(small.runs, {**answered, run.id: 0.5})
    late = {**small.runs, run.id: replace(run, load="overloaded")}
    assert run.id not in usable_runs(late, answered)
    assert all(small.runs[r].beyond_measured <= 0.01 for f in small.findings for r in f.runs)
