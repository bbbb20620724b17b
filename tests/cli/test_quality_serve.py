"""``qsim calibrate quality --serve``: servers that are started in turn, with a stub of vLLM."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qsim.calibrate.measure.quality import parse_served
from qsim.catalog.methods import METHODS
from qsim.cli.calibrate.quality import quality
from qsim.errors import CalibrationError, QsimError, ScenarioError
from qsim.profiles.schema import Profile
from tests.calibrate.stub import MARK, NVML, STUB, none_left
from tests.make_profile import make_profile
from tests.quality.fake_lm_eval import FakeLmEval

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> FakeLmEval:
    fake = FakeLmEval()
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    return fake


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints, and the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(NVML))
    monkeypatch.setenv(MARK, tmp_path.name)
    for name, more in (("toy", {}), ("toy-quantized", METHODS["int8-w8a8"].config)):
        (tmp_path / name).mkdir()
        own = {"quantization_config": more} if more else {}
        (tmp_path / name / "config.json").write_text(json.dumps({**CONFIG, **own}), "utf-8")
    return tmp_path


def measure(*args: object, serve_command: str = shlex.join(STUB)) -> Result:
    words = ["--serve-command", serve_command, "--tasks", "gsm8k,mmlu", *map(str, args)]
    return CliRunner().invoke(quality, words)


THREE = ("--serve", "int8-w8a8=toy-quantized", "--serve", "fp8-w8a8=toy", "--serve", "bf16=toy")


def test_three_methods_from_checkpoints_to_profiles(lm_eval: FakeLmEval, place: Path) -> None:
    for method in ("int8-w8a8", "fp8-w8a8"):
        make_profile(method=method).save(place / f"{method}.json")
    result = measure(*THREE, "--out", "q", "--profile", "int8-w8a8.json", "--profile",
                     "fp8-w8a8.json", "--json", "all.json", "--max-model-len", 2048)  # fmt: skip
    assert result.exit_code == 0, (result.exception, result.output)
    asked = [c["model_args"] for c in lm_eval.calls]
    assert [a["model"] for a in asked] == ["toy--bf16", "toy-quantized--int8-w8a8", "toy--fp8-w8a8"]
    assert [Path(a["tokenizer"]).name for a in asked] == ["toy", "toy-quantized", "toy"]
    assert {a["max_length"] for a in asked} == {2048}
    stored = Profile.load(place / "int8-w8a8.json").quality
    assert stored
    assert stored["tasks"]["gsm8k"]["recovery_pct"] < 100
    assert stored["tasks"]["gsm8k"]["paired"]
    assert stored["baseline"]["source"] == "q/scores-bf16.json"
    everything = json.loads((place / "all.json").read_text("utf-8"))
    assert list(everything) == ["bf16", "int8-w8a8", "fp8-w8a8"]
    assert everything["int8-w8a8"] == stored
    assert json.loads((place / "q" / "quality-fp8-w8a8.json").read_text("utf-8")) == (
        Profile.load(place / "fp8-w8a8.json").quality
    )
    assert "recovery_pct" not in everything["bf16"]["tasks"]["gsm8k"]
    for method in everything:
        assert (place / "q" / f"server-{method}.log").stat().st_size > 0
    assert none_left(place.name) == []  # every server has ended


def test_one_that_fails_stops_none_of_the_others(
    lm_eval: FakeLmEval, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_MODE_QUANTIZED", "oom")
    result = measure(*THREE, "--out", "q")
    assert isinstance(result.exception, CalibrationError), result.output
    assert result.exception.exit_code != 0
    assert "1 of 3 methods failed (int8-w8a8: the server ended" in str(result.exception)
    assert "out of GPU memory" in str(result.exception)
    assert "fp8-w8a8\ntask" in result.stdout
    assert sorted(p.name for p in (place / "q").glob("*.json")) == [
        "quality-bf16.json", "quality-fp8-w8a8.json", "scores-bf16.json", "scores-fp8-w8a8.json",
    ]  # fmt: skip
    assert none_left(place.name) == []
    # again: what is there is not measured twice, and never taken unasked
    again = measure(*THREE, "--out", "q")
    assert isinstance(again.exception, ScenarioError)
    assert "scores-bf16.json is there already: --resume" in str(again.exception)
    monkeypatch.delenv("STUB_MODE_QUANTIZED")
    lm_eval.calls.clear()
    last = measure(*THREE, "--out", "q", "--resume")
    assert last.exit_code == 0, (last.exception, last.output)
    assert [c["model_args"]["model"] for c in lm_eval.calls] == ["toy-quantized--int8-w8a8"]
    assert (place / "q" / "quality-int8-w8a8.json").exists()


def test_lm_eval_s_failure_is_of_its_method_alone(lm_eval: FakeLmEval, place: Path) -> None:
    lm_eval.failure = RuntimeError("no data set")
    result = measure("--serve", "bf16=toy", "--out", "q")
    assert isinstance(result.exception, CalibrationError)
    assert "no data set" in str(result.exception)
    assert none_left(place.name) == []


def test_what_a_server_is_started_with(place: Path) -> None:
    (bf16, fp8, kv, int8) = parse_served(
        ["fp8-w8a8=toy", "bf16=toy", "fp8-w8a8+kv-fp8=toy", "int8-w8a8=toy-quantized"]
    )
    start = ["vllm", "serve"]
    assert bf16.command(start, 4096, []) == [
        *start, str(place / "toy"), "--served-model-name", "toy--bf16", "--host", "127.0.0.1",
        "--max-model-len", "4096",
    ]  # fmt: skip
    assert fp8.command(start, 4096, ["-tp", "2"])[-4:] == [
        "--quantization",
        METHODS["fp8-w8a8"].online,
        "-tp",
        "2",
    ]
    assert kv.command(start, 4096, [])[-4:-1] == ["--kv-cache-dtype", "fp8", "--quantization"]
    assert "--quantization" not in int8.command(start, 4096, [])
    assert fp8.command(["python", "-m", "x"], 8, [])[3:5] == ["--model", str(place / "toy")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--serve", "bf16"], ["--serve is 'bf16'; write METHOD=CHECKPOINT"]),
        (["--serve", "bf17=toy"], ["bf17"]),
        (["--serve", "bf16=nowhere"], ["'nowhere'"]),
        (["--serve", "bf16=toy", "--serve", "bf16=toy"], ["names bf16 twice"]),
        (["--serve", "awq-w4a16=toy"], ["not quantized", "awq-w4a16"]),
        (["--serve", "fp8-w8a8=toy-quantized"], ["integer weights", "fp8-w8a8 has floating-point"]),
        (["--serve", "fp8-w8a8=toy"], ["add --serve bf16=CHECKPOINT"]),
        (["--serve", "bf16=toy", "--baseline", "x.json"], ["--baseline and --serve bf16"]),
        (["--serve", "bf16=toy", "--base-url", "http://h:1"], ["--base-url and --serve exclude"]),
        (["--serve", "bf16=toy", "--save-scores", "x"], ["--save-scores and --serve exclude"]),
        (["--serve", "bf16=toy", "--profile", "p.json"], ["p.json is of fp8-w8a8", "has bf16"]),
        (["--base-url", "http://h:1", "--model", "m"], ["--serve-command has no effect without"]),
    ],
)
def test_mistakes_are_found_before_a_server_is_started(
    lm_eval: FakeLmEval, place: Path, args: list[str], words: list[str]
) -> None:
    make_profile(method="fp8-w8a8").save(place / "p.json")
    out = ["--out", "q"] if "--base-url" not in args or "--serve" in args else []
    result = measure(*args, *out)
    assert isinstance(result.exception, QsimError), (result.output, result.exception)
    assert result.exception.exit_code == 2
    for word in words:
        assert word in str(result.exception)
    assert not list(place.glob("q/*"))


def test_a_folder_is_needed(place: Path) -> None:
    result = measure("--serve", "bf16=toy")
    assert isinstance(result.exception, ScenarioError)
    assert "--serve needs --out DIR" in str(result.exception)


def test_two_profiles_of_one_method_are_refused(place: Path) -> None:
    for name in ("a.json", "b.json"):
        make_profile(method="fp8-w8a8").save(place / name)
    result = measure(*THREE, "--out", "q", "--profile", "a.json", "--profile", "b.json")
    assert isinstance(result.exception, ScenarioError)
    assert "a.json and b.json are of one method" in str(result.exception)


def test_a_running_server_needs_its_name() -> None:
    result = CliRunner().invoke(quality, ["--tasks", "gsm8k", "--base-url", "http://h:1"])
    assert isinstance(result.exception, ScenarioError)
    assert "--model is missing" in str(result.exception)
