"""A study compares like with like: one version of vLLM, the same limits of a batch."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest

from qsim.optimize.study.comparing import Claim, Side, better
from qsim.optimize.study.contenders import Contender, choose_contenders, remade
from qsim.optimize.study.figures import Band
from qsim.optimize.study.findings import decide, findings_of
from qsim.optimize.study.levels import Run
from qsim.optimize.study.result import StudyResult
from qsim.optimize.study.runner import Sizes
from qsim.optimize.study.studying import study_for
from qsim.optimize.study.versions import alike, of_one_version, usual_version
from qsim.profiles.lookup import load_profile
from qsim.report.text.study import study_csvs, study_markdown
from qsim.scenario import Scenario
from qsim.sim.scheduler.config import EngineOptions
from tests.optimize.study.example import example_study

SMALL = Sizes(requests=310, most_clients=32)
OPTIONS = EngineOptions(within_measured=True)
GPUS = ["h200_sxm", "h100_sxm", "a100_sxm"]


def contenders(*methods: str, gpus: list[str] = GPUS, sharded: bool = False) -> list[Contender]:
    return choose_contenders(
        "llama-3.1-8b", gpus, methods, (), OPTIONS, None, "specialty", sharded=sharded
    )[0]


def remake(contender: Contender, version: str) -> Contender | None:
    return remade(contender, version, OPTIONS, None, "specialty")


def study(**section: Any) -> StudyResult:
    return study_for(Scenario.from_dict({"study": {"model": "llama-3.1-8b", **section}}),
                     sizes=SMALL)  # fmt: skip


@pytest.fixture(scope="module")
def systems() -> StudyResult:
    return study(gpus=GPUS, methods=["bf16", "mxfp4-w4a16"], levels=["hardware", "parallelism"])


def option(command: str, name: str) -> str | None:
    words = shlex.split(command)
    return words[words.index(name) + 1] if name in words else None


def test_gpu_types_are_compared_under_one_version_with_the_same_limits(
    systems: StudyResult,
) -> None:
    runs = [systems.runs[r.run] for r in systems.hardware]
    assert {r.gpu for r in runs} == set(GPUS)
    assert {r.vllm_version for r in runs} == {"0.24"}
    assert {option(r.command, "--vllm-version") for r in runs} == {"0.24.0"}
    for name, usual in (("--max-num-seqs", "256"), ("--max-num-batched-tokens", "2048")):
        # those of A100, whose defaults are the lowest and need no option
        found = {r.gpu: option(r.command, name) or usual for r in runs}
        assert set(found.values()) == {usual}


def test_sizes_are_compared_under_one_version_with_the_same_limits(systems: StudyResult) -> None:
    for gpu in GPUS:
        rows = [r for r in systems.parallelism if r.gpu == gpu]
        runs = [systems.runs[r.run] for r in rows]
        assert {r.tensor_parallel_size for r in rows} == {1, 2, 4}
        assert {r.vllm_version for r in runs} == {"0.24"}
        assert len({option(r.command, "--max-num-seqs") for r in runs} - {None}) <= 1


def test_no_finding_between_gpus_or_sizes_is_one_of_versions(systems: StudyResult) -> None:
    assert systems.findings
    for finding in systems.findings:
        assert finding.versions == ("0.24",)
        versions = {systems.runs[r].vllm_version for r in finding.runs}
        assert versions == {"0.24"}


def test_each_profile_says_under_which_versions_it_took_part() -> None:
    found = study(gpus=["h200_sxm"], methods=["bf16"], levels=["application", "hardware"],
                  applications=["maths"])  # fmt: skip
    mine = [(p.vllm_version, p.source) for p in found.provenance
            if p.profile == "h200_sxm/llama-3.1-8b/bf16"]  # fmt: skip
    assert mine == [("0.33.0", "measured"), ("0.24.0", "measured")]
    assert {found.runs[r.run].vllm_version for r in found.application} == {"0.33"}
    assert {found.runs[r.run].vllm_version for r in found.hardware} == {"0.24"}
    assert any(n.startswith("hardware: all profiles are of vLLM 0.24") for n in found.notes)


def test_methods_of_one_gpu_name_the_version_that_is_another_one() -> None:
    found = study(model="llama-3.1-70b", gpus=["h200_sxm"], levels=["application"],
                  methods=["fp8-w8a8", "awq-w4a16", "mxfp4-w4a16", "nvfp4-w4a16"],
                  applications=["code", "summarization"])  # fmt: skip
    across = [f for f in found.findings if len(f.versions) > 1]
    assert across
    for f in across:
        assert f.versions == ("0.24", "0.33")
        assert "nvfp4-w4a16 (vLLM 0.24)" in f.statement
        assert re.search(r"(fp8-w8a8|awq-w4a16|mxfp4-w4a16) \(vLLM 0\.33\)", f.statement)
    first = min(f.rank for f in across)
    assert all(len(f.versions) < 2 for f in found.findings if f.rank < first)
    assert all(len(f.versions) > 1 for f in found.findings if f.rank >= first)
    assert any("nvfp4-w4a16 of 0.24" in n for n in found.notes)
    data = json.loads(json.dumps(found.to_dict()))
    told = [f["versions"] for f in data["findings"]]
    assert ["0.24", "0.33"] in told
    assert any(d["versions"] == {"nvfp4-w4a16": "0.24"} for d in data["decisions"])


def test_an_asked_version_is_kept_and_nothing_is_told_across_versions() -> None:
    scenario = Scenario.from_dict({
        "study": {"model": "llama-3.1-8b", "gpus": ["h200_sxm", "a100_sxm"], "methods": ["bf16"],
                  "levels": ["hardware"]},
        "fleet": {"pools": [{"engine": {"vllm_version": "0.33.0"}}]},
    })  # fmt: skip
    found = study_for(scenario, sizes=SMALL)
    assert {(found.runs[r.run].gpu, found.runs[r.run].vllm_version) for r in found.hardware} == {
        ("h200_sxm", "0.33"), ("a100_sxm", "0.24")
    }  # fmt: skip
    assert not found.findings
    assert any("not compared across versions" in n for n in found.notes)
    assert "Profiles are of several versions of vLLM (0.24, 0.33)" in study_markdown(found)


def test_the_newest_version_that_all_have_is_taken() -> None:
    some = contenders("bf16", gpus=GPUS)
    assert [c.version for c in some] == ["0.33", "0.24", "0.24"]
    assert [c.version for c in of_one_version(some, lambda c: c.gpu, remake)] == ["0.24"] * 3
    h200 = contenders("bf16", "int8-w8a8", gpus=["h200_sxm"])
    assert [c.version for c in h200] == ["0.33", "0.33"]  # one measured, one carried
    assert of_one_version(h200, lambda c: c.gpu, remake) == tuple(h200)
    sizes = of_one_version(
        contenders("bf16", gpus=["h200_sxm"], sharded=True),
        lambda c: c.tensor_parallel_size,
        remake,
    )
    assert [(c.tensor_parallel_size, c.version) for c in sizes] == [
        (1, "0.24"), (2, "0.24"), (4, "0.24")
    ]  # fmt: skip


def test_a_profile_that_only_one_version_has_stays_and_the_others_go_where_most_are() -> None:
    some = contenders("bf16")
    profile = load_profile("h200_sxm/llama-3.1-8b/bf16@0.33")
    identity = replace(profile.identity, method="fp8-block")
    own = replace(some[0], profile=replace(profile, identity=identity), given=True)
    found = of_one_version([own, *some], lambda c: c.gpu, remake)
    assert [c.version for c in found] == ["0.33", "0.24", "0.24", "0.24"]


def test_limits_are_the_lowest_and_those_asked_for_stay() -> None:
    some = contenders("bf16", "mxfp4-w4a16", gpus=["h100_sxm"])
    assert [c.seats for c in some] == [256, 576]
    assert [c.seats for c in alike(some)] == [256, 256]
    asked = replace(OPTIONS, max_num_seqs=64)
    both = choose_contenders("llama-3.1-8b", GPUS, ["bf16"], (), asked, None, "specialty")[0]
    assert [c.options.max_num_seqs for c in alike(both)] == [64] * 3


def test_most_have_the_usual_version() -> None:
    assert usual_version(["0.24", "0.33", "0.33"]) == "0.33"
    assert usual_version(["0.24", "0.33"]) == "0.33"
    assert usual_version(["", ""]) == ""


def run(name: str, method: str, version: str) -> Run:
    return Run(name, "hardware", f"h200_sxm/m/{method}", "h200_sxm", method, 1, 1, "t", f"c {name}",
               {}, "sustained", 0.0, 800, version)  # fmt: skip


def claim(kind: str, a: str, b: str, runs: tuple[str, str], gap: float) -> Claim:
    sides = [Side(m, Band.exact(v), r)
             for m, v, r in zip((a, b), (1.0, gap), runs, strict=True)]  # fmt: skip
    verdict = better("mean_ttft_ms", *sides)
    assert verdict is not None
    return Claim(kind, "hardware", "h200_sxm", (a, b), f"{a}-static is not {a}, nor {b} {a}",
                    "mean_ttft_ms", (verdict,))  # fmt: skip


def test_a_stronger_claim_across_versions_stands_behind_a_weaker_one_of_one() -> None:
    runs = {r.id: r for r in (run("r1", "fp8-w8a8", "0.24"), run("r2", "bf16", "0.33"),
                              run("r3", "awq-w4a16", "0.33"))}  # fmt: skip
    strong = claim("gain", "fp8-w8a8", "bf16", ("r1", "r2"), 9.0)
    weak = claim("bursts", "awq-w4a16", "bf16", ("r3", "r2"), 1.1)
    first, second = findings_of([strong, weak], runs)
    assert (first.kind, first.versions) == ("bursts", ("0.33",))
    assert (second.kind, second.versions) == ("gain", ("0.24", "0.33"))
    assert second.statement == (
        "fp8-w8a8-static is not fp8-w8a8 (vLLM 0.24), nor bf16 (vLLM 0.33) fp8-w8a8"
    )
    assert "vLLM" not in first.statement


@pytest.mark.parametrize("kind", ["inversion", "hardware", "sharding"])
def test_gpus_and_sizes_across_versions_are_not_told(kind: str) -> None:
    for version, told in (("0.33", 1), ("0.24", 0), ("", 0)):
        runs = {r.id: r for r in (run("r1", "fp8-w8a8", version), run("r2", "bf16", "0.33"))}
        claims = [claim(kind, "fp8-w8a8", "bf16", ("r1", "r2"), 2.0)]
        assert len(findings_of(claims, runs)) == told


def test_a_decision_names_the_version_of_the_odd_one() -> None:
    example = example_study()
    runs = {i: replace(r, vllm_version="0.24" if r.method == "awq-w4a16" else "0.33")
            for i, r in example.runs.items()}  # fmt: skip
    decisions = decide(example.application, frozenset(runs), None, runs)
    latency = next(d for d in decisions if d.goal == "latency")
    assert latency.versions == {"awq-w4a16": "0.24"}
    assert latency.named("awq-w4a16") == "awq-w4a16 (vLLM 0.24)"
    assert latency.named("bf16") == "bf16"
    found = replace(example, runs=runs, decisions=decisions)
    assert "awq-w4a16 (vLLM 0.24)" in study_markdown(found)
    assert "awq-w4a16=0.24" in study_csvs(found)["decisions.csv"]
    quality = next(d for d in decisions if d.goal == "quality")
    assert quality.versions == {}  # it is of no run
