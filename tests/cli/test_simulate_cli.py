from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import click
import pytest
import yaml

from qsim import load_profile, load_trace, simulate
from qsim.cli import main
from qsim.cli._options import ROUTER_HELP
from qsim.sim.fleet.routers.router import ROUTERS
from tests.cli.helpers import TRACE, fails, qsim, write
from tests.make_profile import make_profile


def test_a_table_for_people(trace: Path, profile: Path) -> None:
    result = qsim("simulate", trace, "--profile", profile, "--replicas", 2)
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in ("5 requests on 2 x h200_sxm/toy-1b/fp8-w8a8", "5 completed, 0 failed",
                  "TTFT, time to first token", "J per output token"):  # fmt: skip
        assert words in result.stdout


def test_json_is_the_summary_and_the_same_bytes_each_time(trace: Path, profile: Path) -> None:
    args = ("simulate", trace, "--profile", profile, "--router", "random", "--replicas", 3,
            "--slo", "ttft:p99:1", "--json", "-")  # fmt: skip
    first, second = qsim(*args), qsim(*args)
    assert first.stdout_bytes == second.stdout_bytes
    data = json.loads(first.stdout)
    expected = simulate(
        load_trace(trace), load_profile(str(profile)), replicas=3, router="random"
    ).summary()
    for key, value in expected.items():
        if key not in ("scenario", "notes", "load"):  # five requests go on, to tell
            assert data[key] == value, key
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "p90", "p99"):
            assert data[f"{statistic}_{metric}_ms"] > 0
    assert data["completed"] == 5
    assert data["slos"][0]["met"] is False
    assert data["slos"][0]["over_ms"] == pytest.approx(data["p99_ttft_ms"] - 1)
    assert data["attainment"] == 0.0
    assert data["slos_met"] is False
    assert data["load"]["verdict"] == "sustained"
    assert data["qsim_version"]
    assert data["resolved"]["max_num_batched_tokens"] == 8192


def test_json_to_a_file_leaves_the_table_on_stdout(
    tmp_path: Path, trace: Path, profile: Path
) -> None:
    out = tmp_path / "new" / "summary.json"
    result = qsim("simulate", trace, "--profile", profile, "--json", out)
    assert "TTFT" in result.stdout
    assert json.loads(out.read_text())["completed"] == 5
    assert [p.name for p in out.parent.iterdir()] == ["summary.json"]


def test_engine_options_reach_the_engine(trace: Path, profile: Path) -> None:
    result = qsim(
        "simulate", trace, "--profile", profile, "--max-num-seqs", 3, "--max-num-batched-tokens",
        "2K", "--max-model-len", "4k", "--no-enable-prefix-caching", "--no-async-scheduling",
        "--num-gpu-blocks-override", 1000, "--long-prefill-token-threshold", 512,
        "--scheduling-policy", "priority", "--json", "-",
    )  # fmt: skip
    resolved = json.loads(result.stdout)["resolved"]
    assert {k: resolved[k] for k in (
        "max_num_seqs", "max_num_batched_tokens", "max_model_len", "enable_prefix_caching",
        "async_scheduling", "num_gpu_blocks", "long_prefill_token_threshold", "scheduling_policy",
    )} == {
        "max_num_seqs": 3, "max_num_batched_tokens": 2048, "max_model_len": 4000,
        "enable_prefix_caching": False, "async_scheduling": False, "num_gpu_blocks": 1000,
        "long_prefill_token_threshold": 512, "scheduling_policy": "priority",
    }  # fmt: skip


def test_kv_cache_memory_bytes_as_vllm_writes_it(trace: Path, profile: Path) -> None:
    result = qsim(
        "simulate", trace, "--profile", profile, "--kv-cache-memory-bytes", "1G", "--json", "-"
    )
    assert json.loads(result.stdout)["resolved"]["num_gpu_blocks"] == 2**30 // (131072 * 16)


def test_trace_shaping(trace: Path, profile: Path) -> None:
    result = qsim("simulate", trace, "--profile", profile, "--start", 0.4, "--end", 1.12,
                  "--speed", 2, "--head", 1, "--json", "-")  # fmt: skip
    data = json.loads(result.stdout)
    assert (data["completed"], data["total_input_tokens"]) == (1, 90)
    assert data["scenario"]["traffic"]["speed"] == 2.0


def test_requests_file(tmp_path: Path, trace: Path, profile: Path) -> None:
    out = tmp_path / "requests.csv"
    assert qsim("simulate", trace, "--profile", profile, "--requests", out).exit_code == 0
    rows = list(csv.DictReader(out.open()))
    assert [r["prompt_tokens"] for r in rows] == ["200", "1500", "90", "700", "30"]
    assert rows[2]["tpot_ms"] == ""  # one token has no TPOT


def test_report(tmp_path: Path, trace: Path, profile: Path) -> None:
    out = tmp_path / "report.html"
    result = qsim("simulate", trace, "--profile", profile, "--slo", "ttft:p99:1", "--report", out)
    assert result.exit_code == 0, result.output
    assert "<svg" in out.read_text()


def test_a_missed_slo_is_told_and_not_an_error(trace: Path, profile: Path) -> None:
    args = (
        "simulate",
        trace,
        "--profile",
        profile,
        "--slo",
        "ttft:p99:1",
        "--slo",
        "e2el:mean:1e5",
    )
    result = qsim(*args)
    assert result.exit_code == 0
    assert "MISSED" in result.stdout
    assert "met, " in result.stdout
    strict = qsim(*args, "--fail-on-slo")
    assert strict.exit_code == 3
    assert strict.stdout == result.stdout
    assert strict.stderr.startswith("Error: ttft p99 ")
    assert "over its limit of 1 ms" in strict.stderr or "times its limit" in strict.stderr


def test_an_slo_over_nothing_is_not_met(tmp_path: Path, profile: Path) -> None:
    rows = "".join(f"{i / 10},100,1\n" for i in range(30))
    single = write(tmp_path / "one.csv", "arrival_s,prompt_tokens,output_tokens\n" + rows)
    for stream in ((), ("--stream",)):
        args = ("simulate", single, "--profile", profile, "--slo", "tpot:p99:0.001", *stream)
        told = qsim(*args, "--fail-on-slo")
        assert told.exit_code == 3
        assert "nothing to judge" in told.stdout
        assert "nothing to judge" in told.stderr
        assert " met" not in told.stdout
        data = json.loads(qsim(*args, "--json", "-").stdout)
        assert (data["slos"][0]["met"], data["slos"][0]["verdict"]) == (None, "nothing to judge")
        assert data["attainment"] is data["request_goodput"] is None
        assert data["slos_met"] is False


def test_few_requests_do_not_settle_a_p99(tmp_path: Path, profile: Path) -> None:
    for n, verdict, met in ((30, "not enough requests to judge", None), (300, "met", True)):
        rows = "".join(f"{i / 10},100,3\n" for i in range(n))
        few = write(tmp_path / "few.csv", "arrival_s,prompt_tokens,output_tokens\n" + rows)
        args = ("simulate", few, "--profile", profile, "--slo", "ttft:p99:1e4", "--fail-on-slo")
        result = qsim(*args)
        assert result.exit_code == (0 if met else 3)
        assert ("299 are needed" in " ".join(result.stdout.split())) == (met is None)
        data = json.loads(qsim(*args, "--json", "-").stdout)
        assert (data["slos"][0]["verdict"], data["slos"][0]["met"]) == (verdict, met)
        assert data["slos_met"] is met
        assert data["attainment"] == 1.0
        assert 0.9 < data["attainment_interval"][0] < 1.0


def test_an_overloaded_fleet_is_told(profile: Path) -> None:
    args = ("simulate", "azure-conv-2023:duration=15,rate=60", "--profile", profile, "--slo",
            "ttft:p95:1e6", "--too-long", "reject")  # fmt: skip
    told = qsim(*args, "--fail-on-slo")
    assert told.exit_code == 3
    assert "overloaded: " in told.stdout
    assert "it could carry" in " ".join(told.stdout.split())
    assert "met, " in told.stdout
    assert "(on this trace)" in told.stdout
    assert told.stderr.split("Error: ")[1].startswith("overloaded: ")
    allowed = qsim(*args, "--fail-on-slo", "--allow-backlog")
    assert allowed.exit_code == 0
    assert "overloaded: " in allowed.stdout
    data = json.loads(qsim(*args, "--json", "-").stdout)
    assert data["load"]["verdict"] == "overloaded"
    assert 0 < data["load"]["carried_rps"] < data["load"]["arriving_rps"]
    assert data["slos_met"] is False
    streamed = qsim(*args, "--stream")
    assert "overloaded: " in streamed.stdout or "too short to tell" in streamed.stdout
    many = qsim("simulate", "azure-conv-2023:duration=15,rate=60", "--profile", profile,
                "--replicas", 12, "--too-long", "reject")  # fmt: skip
    assert "load " not in many.stdout


def test_one_request_alone_and_a_request_at_zero(tmp_path: Path, profile: Path) -> None:
    one = write(tmp_path / "one.csv", "arrival_s,prompt_tokens,output_tokens\n0,100,11\n")
    data = json.loads(qsim("simulate", one, "--profile", profile, "--json", "-").stdout)
    assert data["completed"] == 1
    assert data["duration"] == pytest.approx(data["mean_e2el_ms"] / 1000, rel=1e-9)
    assert data["mean_tpot_ms"] == pytest.approx(
        (data["mean_e2el_ms"] - data["mean_ttft_ms"]) / 10, rel=1e-9
    )


def test_saved_scenario_gives_the_same_result(tmp_path: Path, trace: Path, profile: Path) -> None:
    saved = tmp_path / "s.yaml"
    first = qsim(
        "simulate", trace, "--profile", profile, "--replicas", 2, "--max-num-seqs", 2, "--slo",
        "ttft:p99:50", "--slo", "tpot:mean:9", "--speed", 3, "--no-async-scheduling",
        "--save-scenario", saved, "--json", "-",
    )  # fmt: skip
    assert yaml.safe_load(saved.read_text()) == json.loads(first.stdout)["scenario"]
    again = qsim("simulate", "--scenario", saved, "--json", "-")
    assert again.stdout_bytes == first.stdout_bytes
    other = qsim("simulate", "--scenario", saved, "--replicas", 1, "--async-scheduling",
                 "--json", "-")  # fmt: skip
    resolved = json.loads(other.stdout)["resolved"]
    assert (resolved["replicas"], resolved["async_scheduling"]) == (1, True)
    assert resolved["max_num_seqs"] == 2


def test_scenario_may_name_outputs_and_single_values(
    tmp_path: Path, trace: Path, profile: Path
) -> None:
    out = tmp_path / "summary.json"
    s = write(
        tmp_path / "s.yaml",
        f"trace: {trace}\nprofile: {profile}\nslo: ttft:p99:1\nfail_on_slo: true\n"
        f"json: {out}\nenable_prefix_caching: false\nmax_num_seqs: null\n",
    )
    assert qsim("simulate", "--scenario", s).exit_code == 3
    data = json.loads(out.read_text())
    assert data["resolved"]["enable_prefix_caching"] is False
    assert "json" not in data["scenario"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicsa: 2\n", ["unknown key 'replicsa'", "did you mean 'replicas'"]),
        ("zzz: 2\n", ["unknown key 'zzz'", "known: trace"]),
        ("scenario: other.yaml\n", ["unknown key 'scenario'"]),
        ("- a\n", ["holds a list", "mapping"]),
        ("a: [\n", ["not YAML"]),
        ("replicas: {a: 1}\n", ["replicas is {'a': 1}"]),
        ("trace: t\nprofile: p\nslo: [ttft]\n", ["'ttft' does not parse"]),
    ],
)
def test_wrong_scenarios(tmp_path: Path, text: str, words: list[str]) -> None:
    fails(qsim("simulate", "--scenario", write(tmp_path / "s.yaml", text)), 2, *words)


@pytest.mark.parametrize("value", ["1.5", "two", "[1, 2]", "true"])
def test_a_scenario_value_of_the_wrong_type(
    tmp_path: Path, trace: Path, profile: Path, value: str
) -> None:
    s = write(tmp_path / "s.yaml", f"trace: {trace}\nprofile: {profile}\nreplicas: {value}\n")
    result = qsim("simulate", "--scenario", s)
    assert result.exit_code == 2
    assert "replicas" in result.stderr


def test_a_think_time_without_clients_is_said_in_options(trace: Path, profile: Path) -> None:
    fails(qsim("simulate", trace, "--profile", profile, "--think-time", 3), 2,
          "--think-time is 3, and there are no clients that think: give --concurrency")  # fmt: skip


def test_bad_input_unknown_profile(trace: Path) -> None:
    fails(qsim("simulate", trace, "--profile", "h200_sxm/nope/bf16"), 2,
          "unknown profile 'h200_sxm/nope/bf16'", "qsim profiles")  # fmt: skip


def test_bad_input_slo(trace: Path, profile: Path) -> None:
    fails(qsim("simulate", trace, "--profile", profile, "--slo", "ttft<500"), 2,
          "'ttft<500' does not parse", "metric:statistic:limit")  # fmt: skip


def test_bad_input_prompt_longer_than_max_model_len(trace: Path, profile: Path) -> None:
    args = ("simulate", trace, "--profile", profile, "--max-model-len", 1500)
    fails(qsim(*args), 2, "request 1", "1500", "max_model_len", "--too-long reject")
    result = qsim(*args, "--too-long", "reject", "--json", "-")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert (data["completed"], data["failed"]) == (4, 1)
    assert "rejected" in result.stderr


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("-1.0,10,10\n", ["-1.0"]),
        ("0.2,10,10\n", ["line 7", "arrives 0.95 s before"]),
        ("nan,10,10\n", ["nan"]),
        ("2,10,-1\n", ["-1"]),
        ("2,ten,10\n", ["ten"]),
    ],
)
def test_bad_input_rows(tmp_path: Path, profile: Path, row: str, words: list[str]) -> None:
    bad = write(tmp_path / "bad.csv", TRACE + row)
    fails(qsim("simulate", bad, "--profile", profile), 2, "bad.csv", *words)


def test_bad_input_empty_file(tmp_path: Path, profile: Path) -> None:
    for text in ("", "arrival_s,prompt_tokens,output_tokens\n"):
        empty = write(tmp_path / "empty.csv", text)
        fails(qsim("simulate", empty, "--profile", profile), 2, "empty.csv")


def test_bad_input_no_such_file(profile: Path) -> None:
    fails(qsim("simulate", "no/such/file.csv", "--profile", profile), 2, "no/such/file.csv")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--replicas", 0, ["replicas is 0", ">= 1"]),
        ("--replicas", -3, ["replicas is -3"]),
        ("--router", "fastest", ["router is 'fastest'", "least-requests"]),
        ("--seed", -1, ["seed is -1"]),
        ("--too-long", "drop", ["too_long is 'drop'"]),
        ("--max-num-seqs", 0, ["max_num_seqs is 0"]),
        ("--scheduling-policy", "lifo", ["scheduling_policy is 'lifo'"]),
        ("--max-model-len", 10**6, ["max_model_len is 1000000", "KV cache"]),
        ("--speed", 0, ["speed is 0"]),
        ("--head", 0, ["head of 0"]),
        ("--start", 99, ["no request arrives"]),
        ("--report", "r.txt", ["--report is 'r.txt'", ".html"]),
        ("--requests", "r.txt", ["--requests is 'r.txt'", ".csv"]),
    ],
)
def test_bad_input_options(
    trace: Path, profile: Path, option: str, value: object, words: list[str]
) -> None:
    fails(qsim("simulate", trace, "--profile", profile, option, value), 2, *words)


@pytest.mark.parametrize("value", ["8.5", "many", "8x", "", "1.23k4"])
def test_counts_must_be_whole(trace: Path, profile: Path, value: str) -> None:
    result = qsim("simulate", trace, "--profile", profile, "--max-model-len", value)
    assert result.exit_code == 2
    assert "not a whole number" in result.stderr


def test_a_profile_that_is_not_one(tmp_path: Path, trace: Path) -> None:
    bad = write(tmp_path / "bad.json", "{}")
    fails(qsim("simulate", trace, "--profile", bad), 2, "bad.json", "schema")


def test_an_output_that_cannot_be_written(tmp_path: Path, trace: Path, profile: Path) -> None:
    in_the_way = write(tmp_path / "file", "")
    result = qsim("simulate", trace, "--profile", profile, "--json", in_the_way / "x.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "file" in result.stderr


def test_skipped_and_sorted(tmp_path: Path, profile: Path) -> None:
    make_profile().save(profile)
    unsorted = write(tmp_path / "u.csv", TRACE + "0.2,10,10\n")
    result = qsim("simulate", unsorted, "--profile", profile, "--sort", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["completed"] == 6


def test_steps_and_timeline(tmp_path: Path, trace: Path, profile: Path) -> None:
    timeline = tmp_path / "timeline.json"
    result = qsim("simulate", trace, "--profile", profile, "--steps", "-", "--timeline", timeline)
    assert result.exit_code == 0
    steps = [json.loads(line) for line in result.stdout.splitlines()]
    plain = json.loads(qsim("simulate", trace, "--profile", profile, "--json", "-").stdout)
    assert len(steps) == sum(r["steps"] for r in plain["replicas"])
    tokens = sum(s["num_prefill_tokens"] + s["num_decode"] for s in steps)
    want = plain["total_input_tokens"] + plain["total_output_tokens"] - plain["completed"]
    assert tokens == want
    events = json.loads(timeline.read_text())["traceEvents"]
    assert sum(e["ph"] == "X" and e["tid"] == 2 for e in events) == len(steps)


def test_beyond_the_measured_range_is_said(tmp_path: Path, trace: Path) -> None:
    narrow = make_profile()
    narrow = replace(narrow, measured_range={"decode_rows": [1, 1], "step_tokens": [1, 4096]})
    path = tmp_path / "narrow.json"
    narrow.save(path)
    notes = json.loads(qsim("simulate", trace, "--profile", path, "--json", "-").stdout)["notes"]
    assert any("requests ran in one step; the profile was measured up to 1" in n for n in notes)
    assert any("of the steps are beyond the measured range" in n for n in notes)


def test_where_steps_go_is_not_part_of_the_scenario(
    tmp_path: Path, trace: Path, profile: Path
) -> None:
    command = ("simulate", trace, "--profile", profile, "--json", "-")
    plain = json.loads(qsim(*command).stdout)
    logged = qsim(*command, "--steps", tmp_path / "s.jsonl", "--timeline", tmp_path / "t.json")
    assert json.loads(logged.stdout) == plain


def test_every_router_is_in_the_help() -> None:
    assert set(re.split(r", | or ", ROUTER_HELP.rstrip("."))) == set(ROUTERS)


def test_streamed_rows_are_those_of_the_whole_run(tmp_path: Path, profile: Path) -> None:
    args = ("simulate", "azure-conv-2023:requests=300,rate=9", "--profile", profile,
            "--replicas", 2, "--slo", "ttft:p99:80", "--too-long", "reject")  # fmt: skip
    whole = qsim(*args, "--requests", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    parts = qsim(*args, "--requests", tmp_path / "b.csv", "--json", tmp_path / "b.json",
                 "--stream", "--progress", "--save-scenario", tmp_path / "s.yaml")  # fmt: skip
    assert whole.exit_code == parts.exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert "was streamed: percentiles are within 0.0061% of the exact ones" in parts.stderr
    assert "100%" in parts.stderr
    assert "300 requests" in parts.stderr
    one, other = (json.loads((tmp_path / f"{x}.json").read_text()) for x in "ab")
    assert other["percentile_error"] == pytest.approx(6.1e-5, rel=0.01)
    assert "percentile_error" not in one
    for key in ("completed", "failed", "duration", "energy_j", "attainment", "replicas",
                "total_output_tokens", "resolved"):  # fmt: skip
        assert one[key] == other[key], key
    assert other["p99_ttft_ms"] == pytest.approx(one["p99_ttft_ms"], rel=7e-5)
    assert yaml.safe_load((tmp_path / "s.yaml").read_text())["traffic"]["stream"] is True


def test_a_large_trace_is_streamed_unless_told_otherwise(profile: Path) -> None:
    args = ("simulate", "azure-conv-2024-week", "--head", 40, "--profile", profile)
    by_itself = qsim(*args)
    assert by_itself.exit_code == 0
    assert "because it is large (--no-stream holds it in memory)" in by_itself.stderr
    assert "40 requests" in by_itself.stdout


@pytest.mark.parametrize("option", [("--steps", "-"), ("--timeline", "t.json"), ("--sort",)])
def test_what_needs_the_whole_run_cannot_be_streamed(
    trace: Path, profile: Path, option: tuple[str, ...]
) -> None:
    result = qsim("simulate", trace, "--profile", profile, "--stream", *option)
    fails(result, 2, f"--stream and {option[0]} are both given")


def test_every_engine_option_takes_thousands(trace: Path, profile: Path, tmp_path: Path) -> None:
    saved = tmp_path / "s.yaml"
    result = qsim("simulate", trace, "--profile", profile, "--max-num-seqs", "1K",
                  "--max-num-batched-tokens", "8K", "--max-model-len", "8k",
                  "--num-gpu-blocks-override", "2k", "--long-prefill-token-threshold", "1k",
                  "--head", "1K", "--save-scenario", saved)  # fmt: skip
    assert result.exit_code == 0, result.output
    scenario = yaml.safe_load(saved.read_text())
    assert scenario["traffic"]["head"] == 1024
    assert scenario["fleet"]["pools"][0]["engine"] == {
        "max_num_seqs": 1024, "max_num_batched_tokens": 8192, "max_model_len": 8000,
        "num_gpu_blocks_override": 2000, "long_prefill_token_threshold": 1000,
    }  # fmt: skip
    for command in ("simulate", "plan", "tune", "sweep", "schedule"):
        found = main.get_command(click.Context(main), command)
        assert found
        params = {p.opts[0]: p for p in found.params}
        for option in ("--max-num-seqs", "--max-num-active-seqs", "--max-num-queued-reqs",
                       "--max-num-queued-tokens", "--kv-cache-memory-bytes"):  # fmt: skip
            assert params[option].type.convert("8K", None, None) == 8192, (command, option)
