"""``qsim traces``: results on stdout or in files, remarks on stderr, errors with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qsim.cli import main
from qsim.traces import load_trace

BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,API log\n"
    "118,GPT-4,417,276,693,API log\n"
)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["traces", *map(str, args)])


@pytest.fixture
def burst(tmp_path: Path) -> Path:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT)
    return path


def test_info_as_a_table(burst: Path) -> None:
    result = run("info", burst)
    assert result.exit_code == 0
    assert "2 over 113.0 s" in result.stdout
    assert "1 rows skipped (failed request: response of 0 tokens)" in result.stderr


def test_info_as_json_is_only_json(burst: Path) -> None:
    result = run("info", burst, "--json")
    s = json.loads(result.stdout)
    assert (s["requests"], s["format"], s["prompt_tokens_max"]) == (2, "burstgpt", 472)
    assert s["skipped"] == {"failed request: response of 0 tokens": 1}


def test_info_of_a_preset_shows_prefixes() -> None:
    result = run("info", "mooncake-conversation:requests=300")
    assert "blocks of 512 tokens were seen before" in result.stdout


def test_convert_cuts_scales_and_merges(burst: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv.gz"
    result = run("convert", burst, out, "--speed", "2", "--merge", burst)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert load_trace(out).arrival_s.tolist() == [0.0, 0.0, 56.5, 56.5]
    assert run("convert", burst, out, "--head", "1").exit_code == 0
    assert load_trace(out).prompt_tokens.tolist() == [472]
    assert run("convert", burst, out, "--start", "100", "--end", "200").exit_code == 0
    assert load_trace(out).arrival_s.tolist() == [13.0]


def test_convert_to_mooncake_and_timed_trace(tmp_path: Path) -> None:
    out = tmp_path / "m.jsonl"
    assert run("convert", "mooncake-conversation:requests=20", out).exit_code == 0
    assert load_trace(out).hash_ids is not None
    result = run("convert", "azure-conv-2023:requests=5", out, "--to", "timed-trace")
    assert result.exit_code == 0
    assert len(out.read_text().splitlines()) == 5


def test_synth_a_preset_with_options(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    result = run("synth", "azure-conv-2023", out, "--rate", "20", "--duration", "60", "--seed", 1)
    assert result.exit_code == 0, result.stderr
    same = load_trace("azure-conv-2023:rate=20,duration=60,seed=1")
    assert load_trace(out).arrival_s.tobytes() == same.arrival_s.tobytes()
    assert f"{len(same):,} requests" in result.stderr


def test_options_go_before_the_parameters_of_the_preset(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert run("synth", "azure-conv-2023:requests=9", out, "--requests", 7).exit_code == 0
    assert len(load_trace(out)) == 7


@pytest.mark.parametrize(
    "options",
    [
        ["poisson"],
        ["gamma", "--cv", "2"],
        ["weibull", "--cv", "0.5"],
        ["diurnal", "--peak-to-trough", "2"],
        ["bursty", "--fano", "2"],
    ],
)
def test_synth_every_arrival_process(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "a.csv"
    args = ["--rate", "5", "--requests", "100", "--prompt-tokens", "64", "--seed", "3"]
    result = run("synth", out, "--arrivals", *options, *args)
    assert result.exit_code == 0, result.stderr
    trace = load_trace(out)
    assert len(trace) == 100
    assert set(trace.prompt_tokens.tolist()) == {64}
    first = out.read_bytes()
    run("synth", out, "--arrivals", *options, *args)
    assert out.read_bytes() == first


def test_presets_are_listed() -> None:
    table = run("presets")
    assert table.exit_code == 0
    assert "azure-conv-2024-week\n" in table.stdout
    data = json.loads(run("presets", "--json").stdout)
    assert {p["name"] for p in data["presets"]} >= {"azure-conv-2023", "burstgpt"}
    assert all(p["sources"] for p in data["presets"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "nothing.csv"], "no such file, and no preset of that name"),
        (["info", "azure-conv-2023", "--head", "0"], "head of 0 requests; must be >= 1"),
        (["convert", "azure-conv-2023", "out.txt"], "the ending does not say what to write"),
        (["synth", "azure-conv-2023"], "give PRESET and OUT"),
        (["synth", "a", "b.csv", "--arrivals", "poisson"], "give OUT alone with --arrivals"),
        (["synth", "azure-conv-2023", "x.csv", "--cv", "2"], "--cv does not go with a preset"),
        (["synth", "x.csv", "--arrivals", "gamma", "--rate", "1"], "the length is missing|--cv"),
        (["synth", "azure-conv-2023", "x.csv", "--seed", "-1"], "--seed is -1; must be >= 0"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(args: list[str], message: str) -> None:
    import re

    result = CliRunner().invoke(main, ["traces", *args])
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
