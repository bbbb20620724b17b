"""Files and options that once crashed, hung or were taken for something else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.calibrate.synthetic import SERVER
from tests.cli.helpers import TRACE, fails, qsim, write
from tests.make_profile import make_profile


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trace and a profile, and the one that commands run in."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", TRACE)
    make_profile().save(tmp_path / "p.json")
    return tmp_path


SIMULATE = "simulate t.csv --profile p.json"
PLAN = "plan t.csv --profile p.json --slo ttft:p99:9000 --no-headroom --jobs 1"
TUNE = "tune t.csv --profile p.json --objective energy --trials 2 --jobs 1"
SWEEP = "sweep t.csv --profile p.json --jobs 1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{SIMULATE} --replicas 10000000000", ["replicas is 10000000000", "<= 10000"]),
        (f"{SIMULATE} --max-num-batched-tokens 8T", ["max_num_batched_tokens", "<= 1048576"]),
        (f"{SIMULATE} --max-num-batched-tokens 8000000000000", ["<= 1048576"]),
        (f"{SIMULATE} --max-num-seqs 100000000000", ["max_num_seqs", "<= 131072"]),
        (f"{SIMULATE} --num-gpu-blocks-override 10000000000000000", ["num_gpu_blocks_override"]),
        (f"{SIMULATE} --kv-cache-memory-bytes 1000000000000000000000", ["--kv-cache-memory-bytes"]),
        (f"{SIMULATE} --max-model-len 100000000000000000", ["max_model_len"]),
        (f"{SIMULATE} --seed -1", ["seed is -1"]),
        (f"{SIMULATE} --end inf", ["--end is inf", "must be a finite number"]),
        (f"{SIMULATE} --start nan", ["--start is nan", "must be a finite number"]),
        (f"{SIMULATE} --speed 1e300", ["--speed is 1e+300"]),
        (f"{SIMULATE} --head " + "9" * 40, ["--head is a whole number of more than 30 digits"]),
        (f"{PLAN} --growth inf", ["--growth is inf"]),
        (f"{SIMULATE} --slo ttft:p99:1e999", ["SLO limit"]),
        (f"{SIMULATE} --slo ttft:p99:1e300", ["SLO limit", "at most 1e+09"]),
        ("simulate azure-conv-2023:requests=1000000000000000 --profile p.json --stream",
         ["requests is 1000000000000000", "<= 1000000000"]),
        ("simulate azure-conv-2023:rate=1e300 --profile p.json", ["rate"]),
        ("simulate azure-conv-2023:duration=1e300 --profile p.json", ["duration"]),
        ("traces info azure-conv-2023:rate=1e8,duration=1e8", ["1e+16 requests", "at most 1e+09"]),
        ("simulate azure-conv-2023:requests=2 --profile p.json --seed -1", ["seed is -1"]),
        (f"{PLAN} --max-replicas 100000000000", ["max_replicas", "<= 10000"]),
        (f"{PLAN} --replications 100000000000", ["replications"]),
        (f"{PLAN} --price h200_sxm=1e300", ["price of h200_sxm is 1e+300"]),
        (f"{PLAN} --region 1e300", ["carbon intensity"]),
        (f"{PLAN} --region DEU --pue 1e300", ["pue is 1e+300"]),
        (f"{TUNE} --constraint gpus<=1e999", ["too large", "1e+18"]),
        (f"{TUNE} --constraint {'(' * 500}gpus<=1{')' * 500}", ["nested deeper than 20"]),
        (f"{TUNE} --constraint {'x' * 5000}", ["must have at most 2000"]),
        (f"{SIMULATE} {'x' * 100_000}", ["more characters"]),
        (f"{TUNE} --pick {'(' * 5000}", ["must have at most 2000"]),
        (f"{TUNE} --seed -1", ["seed is -1"]),
        (f"{TUNE} --seed 18446744073709551616", ["seed is 18446744073709551616"]),
        (f"{TUNE} --trials 100000000000", ["trials"]),
        (f"{TUNE} --batch 100000000000", ["batch"]),
        (f"{TUNE} --population 100000000000", ["population"]),
        (f"{TUNE} --search max_num_seqs=1:1000000000000:1", ["max_num_seqs"]),
        (f"{TUNE} --search replicas=1:x", ["replicas"]),
        (f"{SWEEP} --grid seed=0:999999999", ["the grid has 1e+09 points", "at most 1000000"]),
        (f"{SWEEP} --grid seed=0:9999 --grid replicas=1:1000", ["1e+07 points", "at most 1000000"]),
        (f"{SWEEP} --grid seed=1:2:x1.0000000001", ["more than 100000 values"]),
        (f"{SWEEP} --grid seed=0:3 --lhs 100000000000", ["lhs"]),
        (f"{SWEEP} --grid seed=" + "9" * 5000, ["seed"]),
        (f"{PLAN} --jobs 100000000", ["jobs"]),
        ("traces synth azure-conv-2023 o.csv --requests 1000000000000000", ["requests is"]),
    ],
    ids=lambda v: v[:70] if isinstance(v, str) else "",
)  # fmt: skip
def test_options_have_limits_that_are_told(inputs: Path, line: str, words: list[str]) -> None:
    begin_s = time.process_time()  # a hostile number must not be worked through
    result = qsim(*line.split(" "))
    fails(result, 2, *words)
    assert len(result.stderr) < 5000
    assert time.process_time() - begin_s < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicas: 1:30", ["'1:30' is not a valid integer"]),
        ("replicas: 1\nreplicas: 2", ["line 2", "'replicas' comes twice"]),
        ("a: &a [x]\nb: *a", ["has an alias"]),
        ("trace: !!python/name:os.system x", ["has a tag"]),
        ("replicas: " + "[" * 5000, ["nested deeper"]),
        ("replicas: " + "9" * 5000, ["a whole number of 5000 digits"]),
        ("speed: .nan", ["numbers must be finite"]),
        ("speed: 1e999", ["too large"]),
        ("- a", ["holds a list"]),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else "",
)
def test_scenario_files(inputs: Path, text: str, words: list[str]) -> None:
    write(inputs / "s.yaml", text)
    fails(qsim("simulate", "t.csv", "--profile", "p.json", "--scenario", "s.yaml"), 2, *words)


def test_a_scenario_with_a_leading_zero_is_decimal(inputs: Path) -> None:
    write(inputs / "s.yaml", "max_num_seqs: 010\ntrace: t.csv\nprofile: p.json\n")
    result = qsim("simulate", "--scenario", "s.yaml", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["resolved"]["max_num_seqs"] == 10


@pytest.mark.parametrize("name", ["1e3", "0o7", "010", "yes", "1:30"])
def test_a_saved_scenario_reads_back(inputs: Path, name: str) -> None:
    write(inputs / name, TRACE)
    result = qsim("simulate", name, "--profile", "p.json", "--save-scenario", "s.yaml")
    assert result.exit_code == 0, result.stderr
    again = qsim("simulate", "--scenario", "s.yaml", "--json", "-")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["scenario"]["traffic"]["trace"] == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu,usd_per_hour\nh200_sxm,1e300\n", ["line 2", "at most 1e+06"]),
        ("gpu,usd_per_hour\nh200_sxm,nan\n", ["line 2"]),
        ("gpu,usd_per_hour\n../x,1\n", ["line 2", "must be a name"]),
        ("gpu,usd_per_hour\nh200_sxm," + "9" * 200_000 + "\n", ["field larger than field limit"]),
        ("gpu,usd_per_hour\n" + "x" * 2_000_000, ["line 2 is longer than 1 MiB"]),
        ("gpu,gpu,usd_per_hour\n", ["each name once"]),
        ("gpu,usd_per_hour\nh200_sxm\n", ["1 columns; the header has 2"]),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_price_files(inputs: Path, text: str, words: list[str]) -> None:
    write(inputs / "prices.csv", text)
    fails(qsim(*PLAN.split(), "--prices", "prices.csv"), 2, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hour,gco2e_per_kwh\n0,1e300\n", ["line 2", "at most 100000"]),
        ("hour,gco2e_per_kwh\n0,nan\n", ["line 2"]),
        ("hour,gco2e_per_kwh\n" + "9" * 200_000 + ",1\n", ["field larger than field limit"]),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_carbon_files(inputs: Path, text: str, words: list[str]) -> None:
    write(inputs / "c.csv", text)
    line = "schedule t.csv --profile p.json --slo ttft:p99:9000 --objective carbon --jobs 1"
    fails(qsim(*line.split(), "--carbon-series", "c.csv"), 2, *words)


def config(folder: Path, **changes: Any) -> str:
    """A model's config.json with changes; its path."""
    data = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SERVER["model_config"]}
    path = folder / "toy" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**data, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_position_embeddings": 2}, ["max_position_embeddings of toy is 2", "at least 2048"]),
        ({"max_position_embeddings": 10**30}, ["a whole number of 31 digits"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "<= 10000"]),
        ({"hidden_size": 10**15}, ["hidden_size"]),
        ({"vocab_size": 10**12}, ["vocab_size"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    ],
)
def test_model_configs(inputs: Path, changes: dict[str, Any], words: list[str]) -> None:
    line = "calibrate run --dummy-weights --gpu-type h200_sxm --gpus 0 --methods bf16 --dry-run"
    path = config(inputs, **changes)
    fails(qsim(*line.split(), "--out", "out", "--model", path), 2, *words)


@pytest.mark.parametrize("name", ["a b", "a$(touch PWNED)", "é"])
def test_a_model_s_folder_is_a_name(inputs: Path, name: str) -> None:
    folder = inputs / name
    folder.mkdir()
    Path(config(inputs)).rename(folder / "config.json")
    fails(qsim("methods", "--model", folder), 2, "must be a name of lower-case letters")


def test_terminal_escapes_in_a_message_are_shown_not_sent(inputs: Path) -> None:
    result = qsim("simulate", "t.csv", "--profile", "\x1b[31mred")
    fails(result, 2, r"\x1b[31mred")
    assert "\x1b" not in result.stderr


def test_a_very_long_message_is_cut(inputs: Path) -> None:
    write(inputs / "t2.csv", "arrival_s,prompt_tokens,output_tokens\n0," + "x" * 100_000 + ",1\n")
    result = qsim("simulate", "t2.csv", "--profile", "p.json")
    assert result.exit_code == 2
    assert len(result.stderr) < 5000
