from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.helpers import fails, qsim, write

SLOS = ("--slo", "ttft:p99:400", "--slo", "tpot:p99:9")


def test_table_picture_report_json_and_command(
    tmp_path: Path, trace: Path, profile: Path, slower: Path
) -> None:
    picture, page, data = (tmp_path / n for n in ("plan.png", "plan.html", "plan.json"))
    result = qsim("plan", trace, "--profile", profile, "--profile", slower, *SLOS, "--jobs", 1,
                  "--picture", picture, "--report", page, "--json", data)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "*  fp8-w8a8" in result.stdout
    assert "vllm serve path/to/toy-1b-fp8-w8a8 " in result.stdout
    assert "4.00 USD per GPU and hour" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()
    plan = json.loads(data.read_text())
    assert plan["best"] == "h200_sxm/toy-1b/fp8-w8a8"
    assert plan["scenario"]["slos"] == ["ttft:p99:400", "tpot:p99:9"]
    assert plan["serve_command"] in " ".join(result.stdout.replace("\\\n", "").split())


def test_json_on_stdout_is_the_same_for_any_number_of_jobs(
    trace: Path, profile: Path, slower: Path
) -> None:
    args = ("plan", trace, "--profile", profile, "--profile", slower, *SLOS, "--json", "-")
    one, two = qsim(*args, "--jobs", 1), qsim(*args, "--jobs", 2)
    assert one.stdout_bytes == two.stdout_bytes
    assert one.stderr == ""
    assert json.loads(one.stdout)["candidates"]


def test_infeasible_is_shown_with_reasons_and_exits_with_3(trace: Path, profile: Path) -> None:
    result = qsim("plan", trace, "--profile", profile, "--slo", "tpot:p99:0.1", "--jobs", 1)
    assert result.exit_code == 3
    assert "infeasible" in result.stdout
    told = " ".join(result.stdout.split())
    assert "times its limit of 0.1 ms even for requests served alone" in told
    assert result.stderr.startswith("Error: no candidate meets the SLOs")


def test_progress_on_request(trace: Path, profile: Path) -> None:
    result = qsim("plan", trace, "--profile", profile, *SLOS, "--jobs", 1, "--progress")
    assert "100%" in result.stderr
    assert "%" not in qsim("plan", trace, "--profile", profile, *SLOS, "--jobs", 1).stderr


def test_own_price(trace: Path, profile: Path) -> None:
    result = qsim("plan", trace, "--profile", profile, *SLOS, "--price", "h200_sxm=2.5",
                  "--json", "-")  # fmt: skip
    plan = json.loads(result.stdout)
    assert plan["prices"] == [{"gpu": "h200_sxm", "usd_per_hour": 2.5, "source": "given"}]
    assert plan["candidates"][0]["usd_per_hour"] == 2.5


def test_quality_floor_and_mix(trace: Path, profile: Path, slower: Path) -> None:
    args = ("plan", trace, "--profile", profile, "--profile", slower, *SLOS, "--jobs", 1)
    mix = ("--tasks", "gsm8k:0.3,mmlu:0.7")
    result = qsim(*args, *mix, "--min-quality", 100)
    assert result.exit_code == 0, result.output
    assert "the low end is below the floor of 100" in " ".join(result.stdout.split())
    plan = json.loads(qsim(*args, *mix, "--json", "-").stdout)
    assert plan["quality"]["tasks"] == {"gsm8k": 0.3, "mmlu": 0.7}
    assert plan["scenario"]["accounts"]["tasks"] == "gsm8k:0.3,mmlu:0.7"
    only = qsim("plan", trace, "--profile", profile, *SLOS, "--min-quality", 100)
    assert only.exit_code == 3


def test_carbon(trace: Path, profile: Path, slower: Path) -> None:
    args = ("plan", trace, "--profile", profile, "--profile", slower, *SLOS, "--jobs", 1)
    green = (*args, "--region", "DEU", "--objective", "carbon")
    text = " ".join(qsim(*green).stdout.split())
    assert text.count("energy of the GPUs only") == 1
    assert "gCO2e" not in qsim(*args).stdout
    plan = json.loads(qsim(*green, "--json", "-").stdout)
    assert plan["carbon"]["region"] == "DEU"
    assert plan["carbon"]["pue"] == 1.0
    values = [c["gco2e"] for c in plan["candidates"] if c["feasible"]]
    assert values == sorted(values)
    assert values[0] > 0


def test_growth_is_stated_and_saved(tmp_path: Path, trace: Path, profile: Path) -> None:
    saved = tmp_path / "s.yaml"
    args = ("plan", trace, "--profile", profile, *SLOS, "--jobs", 1)
    result = qsim(*args, "--growth", 2, "--save-scenario", saved)
    assert "planned for arrivals 2 times as fast as in the trace" in result.stdout
    assert "5 requests in 0.5750 s" in result.stdout
    assert "planned for" not in qsim(*args).stdout
    assert yaml.safe_load(saved.read_text())["traffic"]["growth"] == 2.0
    assert qsim("plan", "--scenario", saved, "--jobs", 1).stdout == result.stdout


def test_headroom_can_be_left_out(trace: Path, profile: Path) -> None:
    args = ("plan", trace, "--profile", profile, "--slo", "ttft:p99:400", "--jobs", 1)
    assert "head-room: " in qsim(*args).stdout
    saved = trace.parent / "saved.yaml"
    without = qsim(*args, "--no-headroom", "--save-scenario", saved).stdout
    assert "head-room: " not in without
    assert qsim("plan", "--scenario", saved).stdout == without


def test_scenario(tmp_path: Path, trace: Path, profile: Path, slower: Path) -> None:
    s = write(
        tmp_path / "s.yaml",
        f"trace: {trace}\nprofile: [{profile}, {slower}]\nslo: [ttft:p99:400]\n"
        "price: {h200_sxm: 3}\nobjective: energy\nmax_num_seqs: 64\njobs: 1\n",
    )
    saved = tmp_path / "saved.yaml"
    first = qsim("plan", "--scenario", s, "--save-scenario", saved, "--json", "-")
    assert first.exit_code == 0, first.output
    assert yaml.safe_load(saved.read_text())["accounts"]["prices"] == {"h200_sxm": 3.0}
    assert qsim("plan", "--scenario", saved, "--json", "-").stdout_bytes == first.stdout_bytes
    assert json.loads(first.stdout)["settings"]["max_num_seqs"] == 64


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["no SLO is given"]),
        (("--slo", "ttft:p99:a"), ["'a'", "milliseconds"]),
        ((*SLOS, "--objective", "fun"), ["objective is 'fun'", "cost, energy, gpus, carbon"]),
        ((*SLOS, "--max-replicas", 0), ["max_replicas is 0"]),
        ((*SLOS, "--jobs", 0), ["jobs is 0"]),
        ((*SLOS, "--model", "lama-3.1-8b"), ["no profile of model 'lama-3.1-8b'"]),
        (
            (*SLOS, "--model", "qwen3-8b"),
            [
                "no profile of model 'qwen3-8b'",
                "qsim calibrate transfer --to h200_sxm --model ORG/qwen3-8b --out DIR",
            ],
        ),
        ((*SLOS, "--price", "h100_sxm=1"), ["'h100_sxm'", "no profile in this plan"]),
        ((*SLOS, "--objective", "carbon"), ["objective carbon needs a region", "--region"]),
        ((*SLOS, "--region", "DEA"), ["'DEA'", "'DEU'"]),
        ((*SLOS, "--region", "DEU", "--pue", 0.9), ["pue is 0.9"]),
        ((*SLOS, "--pue", 1.2), ["pue is 1.2", "no region is given"]),
        ((*SLOS, "--growth", 0), ["growth is 0.0"]),
        ((*SLOS, "--peak-hour"), ["lasts 1.15 s", "leave it out", "longer one"]),
        ((*SLOS, "--min-quality", 0), ["min_quality is 0.0"]),
        ((*SLOS, "--min-quality", 0.98), ["min_quality is 0.98", "a share of 0.98 is 98"]),
        ((*SLOS, "--tasks", "gsm8k:a"), ["share of 'gsm8k' is 'a'"]),
        ((*SLOS, "--picture", "p.bmp"), ["--picture is 'p.bmp'", ".png"]),
    ],
)
def test_wrong_options(trace: Path, profile: Path, args: tuple[str, ...], words: list[str]) -> None:
    fails(qsim("plan", trace, "--profile", profile, *args), 2, *words)


def test_a_price_must_be_one(trace: Path, profile: Path) -> None:
    for text in ("h200_sxm", "=3", "h200_sxm=cheap"):
        result = qsim("plan", trace, "--profile", profile, *SLOS, "--price", text)
        assert result.exit_code == 2
        assert "is not GPU=USD" in result.stderr


def test_nothing_to_choose_from(trace: Path) -> None:
    fails(qsim("plan", trace, *SLOS), 2, "neither a model nor a profile")


@pytest.mark.parametrize(
    "shape", [(), ("--growth", 2), ("--speed", 2, "--growth", 1.5, "--head", 4)], ids=str
)
def test_the_exported_scenario_simulates_to_the_plans_figures(
    tmp_path: Path, trace: Path, profile: Path, shape: tuple[object, ...]
) -> None:
    file, data = tmp_path / "best.yaml", tmp_path / "plan.json"
    result = qsim("plan", trace, "--profile", profile, *SLOS, *shape, "--max-num-seqs", 2, "--jobs",
                  1, "--export", f"scenario={file}", "--json", data)  # fmt: skip
    assert result.exit_code == 0, result.output
    best = json.loads(data.read_text())["candidates"][0]
    again = json.loads(qsim("simulate", "--scenario", file, "--json", "-").stdout)
    assert again["gpus"] == best["gpus"]
    keys = [k for k in best if k in again and k.endswith(("_ms", "_throughput", "_j", "duration"))]
    assert len(keys) > 15
    assert {k: again[k] for k in keys} == {k: best[k] for k in keys}


def test_exports_on_stdout_and_in_files(tmp_path: Path, trace: Path, profile: Path) -> None:
    args = ("plan", trace, "--profile", profile, *SLOS, "--jobs", 1)
    script = qsim(*args, "--export", "vllm").stdout
    assert script.startswith("#!/bin/sh\n")
    both = qsim(*args, "--export", f"vllm={tmp_path}/run.sh", "--export", f"kubernetes={tmp_path}/")
    assert "* best by cost" in both.stdout
    assert (tmp_path / "run.sh").read_text() == script
    assert yaml.safe_load((tmp_path / "deployment.yaml").read_text())["kind"] == "Deployment"
    fails(qsim(*args, "--export", "vllm", "--json", "-"), 2, "both go to stdout")
    fails(qsim(*args, "--export", "helm"), 2, "export is 'helm'")
    nothing = qsim("plan", trace, "--profile", profile, "--slo", "tpot:p99:0.1", "--export",
                   f"vllm={tmp_path}/no.sh")  # fmt: skip
    assert nothing.exit_code == 3
    assert not (tmp_path / "no.sh").exists()


def test_a_search_is_shown_saved_and_resumed(tmp_path: Path, trace: Path, profile: Path) -> None:
    args = ("plan", trace, "--profile", profile, *SLOS, "--jobs", 1, "--search", "max_num_seqs=2,4")
    journal, saved = tmp_path / "study.log", tmp_path / "s.yaml"
    result = qsim(*args, "--sampler", "grid", "--study", journal, "--save-scenario", saved)
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "search: 2 settings tried (grid) of profile, max_num_seqs; " in told
    scenario = yaml.safe_load(saved.read_text())
    assert scenario["plan"]["search"] == {"max_num_seqs": "2,4"}
    assert "study" not in scenario
    fails(qsim(*args, "--sampler", "grid", "--study", journal), 2, "exists already", "--resume")
    again = qsim("plan", "--scenario", saved, "--study", journal, "--resume", "--jobs", 1)
    assert again.exit_code == 0, again.output
    fails(qsim("plan", trace, "--profile", profile, *SLOS, "--trials", 3), 2, "nothing to search")
    fails(qsim(*args, "--sampler", "magic"), 2, "sampler is 'magic'")


def test_explain(tmp_path: Path, trace: Path, profile: Path, slower: Path) -> None:
    args = ("plan", trace, "--profile", profile, "--profile", slower, *SLOS, "--jobs", 1)
    plain, explained = qsim(*args), qsim(*args, "--explain", "--replications", 3)
    assert explained.exit_code == 0, explained.output
    told = " ".join(explained.stdout.split())
    for words in ("why not bf16: ", "in 3 of 3 replications (stretches of 1 s of the trace",
                  "sensitivity, replicas needed: ttft:p99:400: 1 if 20% tighter", "bottleneck: ",
                  "single changes, ", "one replica more: "):  # fmt: skip
        assert words in told, words
        assert words not in " ".join(plain.stdout.split())
    page = tmp_path / "p.html"
    qsim(*args, "--sensitivity", "--report", page)
    assert "<li>sensitivity, replicas needed: ttft:p99:400: 1 if 20% tighter" in page.read_text()
    data = json.loads(qsim(*args, "--sensitivity", "--json", "-").stdout)["detail"]
    assert [s["factor"] for s in data["sensitivity"]] == [0.8, 1.2, 0.8, 1.2]
    assert data["confidence"]["replications"] == 5  # shown without being asked
    preset = qsim("plan", "azure-conv-2023:duration=2,rate=5,seed=9", "--profile", profile, *SLOS,
                  "--replications", 2)  # fmt: skip
    assert "new draws of the preset azure-conv-2023" in " ".join(preset.stdout.split())
    fails(qsim(*args, "--replications", -1), 2, "replications is -1")
