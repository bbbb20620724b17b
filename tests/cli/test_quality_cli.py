from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qsim.catalog.methods import METHODS
from qsim.cli.calibrate.quality import quality as calibrate_quality
from qsim.errors import QsimError
from qsim.profiles.schema import Profile
from qsim.quality.recovery import recovery
from tests.cli.helpers import fails, qsim
from tests.make_profile import make_profile
from tests.quality.fake_lm_eval import FakeLmEval


def test_the_table() -> None:
    result = qsim("quality")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("llama-3.1-8b: recovery in percent")
    for method in (*METHODS, "bf16+kv-fp8"):
        assert re.search(rf"^{re.escape(method)} ", result.stdout, re.MULTILINE), method
    line = next(x for x in result.stdout.splitlines() if x.startswith("gptq-w4a16 "))
    assert "published" in line
    assert line.endswith("5/5")
    line = next(x for x in result.stdout.splitlines() if x.startswith("awq-w4a16 "))
    assert "estimated" in line
    assert line.endswith("3/5")
    assert "mix: mmlu:0.2, gsm8k:0.2" in result.stdout
    assert "intel/auto-round" in result.stdout
    assert "intel/auto-round" not in qsim("quality", "--no-sources").stdout
    assert all(len(x) <= 130 for x in result.stdout.split("\nmix:")[0].splitlines())


def test_json_is_what_the_library_says() -> None:
    result = qsim("quality", "qwen2.5-14b", "--tasks", "gsm8k:0.3,mmlu:0.7", "--method",
                  "awq-w4a16", "--method", "fp8-w8a8+kv-fp8", "--json")  # fmt: skip
    data = json.loads(result.stdout)
    assert data["model"] == "qwen2.5-14b"
    assert data["mix"] == {"gsm8k": 0.3, "mmlu": 0.7}
    assert [m["method"] for m in data["methods"]] == ["awq-w4a16", "fp8-w8a8+kv-fp8"]
    expected = recovery("qwen2.5-14b", "awq-w4a16", {"gsm8k": 0.3, "mmlu": 0.7}).to_dict()
    got = data["methods"][0]
    families = got.pop("families")
    assert got == expected
    assert families["maths"]["status"] == "estimated"


def test_an_unknown_model_is_said_to_be() -> None:
    result = qsim("quality", "foobar")
    assert result.exit_code == 0
    assert result.stdout.startswith("foobar: an unknown model, recovery in percent")
    assert "Note: model 'foobar' is not known. Nothing was published of it" in result.stderr
    assert "of any size" in result.stderr
    near = qsim("quality", "lama-3.1-8b", "--json")
    assert json.loads(near.stdout)["known_model"] is False
    assert "did you mean 'llama-3.1-8b'" in near.stderr
    for known in ("llama-3.1-8b", "qwen3-8b", "meta-llama/Llama-3.3-70B-Instruct"):
        kin = qsim("quality", known, "--json")
        assert json.loads(kin.stdout)["known_model"] is True
        assert kin.stderr == ""


def test_list_tasks() -> None:
    result = qsim("quality", "--list-tasks")
    assert re.search(r"^maths +gsm8k +school maths in words +gsm8k +\d+$", result.stdout, re.M)
    rows = json.loads(qsim("quality", "--list-tasks", "--json").stdout)
    assert {r["task"]: r["lm_eval"] for r in rows}["ruler"] is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tasks", "gsm8"], ["'gsm8'", "did you mean 'gsm8k'"]),
        (["--tasks", "mmlu:0"], ["'mmlu'", "> 0"]),
        (["--tasks", ""], ["empty"]),
        (["--method", "fp8"], ["'fp8'", "fp8-w8a8"]),
        (["--profile", "none.json"], ["none.json"]),
    ],
)
def test_wrong_options(args: list[str], words: list[str]) -> None:
    fails(qsim("quality", *args), 2, *words)


def test_measured_quality_is_shown(tmp_path: Path, measured: Path) -> None:
    fails(qsim("quality", "--profile", measured), 2, "toy-1b", "not of llama-3.1-8b")
    result = qsim("quality", "toy-1b", "--profile", measured, "--tasks", "gsm8k", "--json",
                  "--method", "fp8-w8a8")  # fmt: skip
    (method,) = json.loads(result.stdout)["methods"]
    assert method["status"] == "measured"
    stored = Profile.load(measured).quality
    assert stored
    assert method["mean_pct"] == pytest.approx(stored["tasks"]["gsm8k"]["recovery_pct"], abs=1e-3)
    bare = tmp_path / "bare.json"
    make_profile(method="fp8-w8a8").save(bare)
    fails(qsim("quality", "toy-1b", "--profile", bare), 2, "no measured quality", "calibrate")


def test_a_warning_is_not_lost_among_the_notes() -> None:
    result = qsim("quality", "qwen2.5-14b", "--method", "fp8-w8a8+kv-fp8")
    assert "fp8-w8a8+kv-fp8: collapsed answers were reported" in result.stdout


def test_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom qsim.cli import main\ntry:\n    main(prog_name='qsim')\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "quality"], capture_output=True, text=True, check=True
    )
    assert not set(done.stderr.split()) & {"scipy", "sklearn", "optuna", "matplotlib", "pandas"}


# --- qsim calibrate quality -------------------------------------------------------------------

URL = "http://localhost:8000"


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> FakeLmEval:
    fake = FakeLmEval()
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    return fake


@pytest.fixture
def measured(lm_eval: FakeLmEval, tmp_path: Path, profile: Path) -> Path:
    result = measure(
        *("--model", "quantized", "--tasks", "gsm8k", "--profile", profile),
        *("--baseline-url", "http://other:1", "--baseline-model", "plain"),
    )
    assert result.exit_code == 0, result.exception
    return profile


def measure(*args: object) -> Result:
    return CliRunner().invoke(calibrate_quality, ["--base-url", URL, *map(str, args)])


def refused(result: Result, *words: str) -> None:
    assert isinstance(result.exception, QsimError), (result.output, result.exception)
    assert result.exception.exit_code == 2
    for word in words:
        assert word in str(result.exception)


def test_baseline_then_method(lm_eval: FakeLmEval, tmp_path: Path, profile: Path) -> None:
    scores = tmp_path / "bf16.json"
    before = Profile.load(profile)
    first = measure("--model", "plain", "--tasks", "gsm8k,mmlu", "--save-scores", scores)
    assert first.exit_code == 0, first.exception
    assert json.loads(scores.read_text())["tasks"]["gsm8k"]["score_pct"] > 70
    second = measure("--model", "quantized", "--tasks", "gsm8k,mmlu", "--baseline", scores,
                     "--profile", profile, "--json", "-")  # fmt: skip
    assert second.exit_code == 0, second.exception
    after = Profile.load(profile)
    assert after.quality == json.loads(second.stdout)
    assert after.quality
    assert after.quality["method"] == "fp8-w8a8"
    assert after.quality["tasks"]["gsm8k"]["paired"]
    assert after.quality["tasks"]["gsm8k"]["recovery_pct"] < 100
    assert after.quality["baseline"]["source"] == str(scores)
    assert replace(after, quality=None) == before  # nothing else of the profile moves
    assert f"stored in {profile}" in second.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bf16.json", "toy.json"]


def test_what_was_measured_on_tasks_of_one_s_own_is_shown(
    lm_eval: FakeLmEval, tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", lm_eval.tasks)
    (tmp_path / "t.yaml").write_text("task: own-tickets\n", "utf-8")
    done = measure("--model", "quantized", "--tasks", "own-tickets", "--include-path", tmp_path,
                   "--baseline-url", "http://b", "--baseline-model", "plain",
                   "--profile", profile)  # fmt: skip
    assert done.exit_code == 0, done.exception
    model = Profile.load(profile).identity.model
    shown = qsim("quality", model, "--profile", profile)
    assert re.search(
        r"^measured on tasks of your own, .*: fp8-w8a8 own-tickets \d\d\.\d \+- \d",
        shown.stdout, re.MULTILINE,
    )  # fmt: skip
    data = json.loads(qsim("quality", model, "--profile", profile, "--json").stdout)
    by_method = {m["method"]: m.get("own_tasks") for m in data["methods"]}
    assert by_method.pop("fp8-w8a8")["own-tickets"]["recovery_pct"] < 100
    assert set(by_method.values()) == {None}
    assert "of your own" not in qsim("quality", model).stdout


def test_two_servers_at_once(lm_eval: FakeLmEval, measured: Path) -> None:
    urls = [c["model_args"]["base_url"] for c in lm_eval.calls]
    assert urls == ["http://localhost:8000/v1/completions", "http://other:1/v1/completions"]
    assert [c["model_args"]["model"] for c in lm_eval.calls] == ["quantized", "plain"]


def test_a_table_for_people(lm_eval: FakeLmEval, tmp_path: Path) -> None:
    result = measure("--model", "plain", "--tasks", "gsm8k", "--json", tmp_path / "x.json")
    assert re.search(r"gsm8k +\d\d\.\d\d \+- 3\.00 +- +-", result.stdout)
    assert json.loads((tmp_path / "x.json").read_text())["method"] == "bf16"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tasks", "gsm9k", "--json", "-"], ["did you mean 'gsm8k'"]),
        (["--tasks", "gsm8k"], ["nothing would be kept", "--save-scores"]),
        (["--tasks", "gsm8k", "--json", "-", "--baseline", "a", "--baseline-url", "http://b"],
         ["exclude each other"]),
        (["--tasks", "gsm8k", "--json", "-", "--baseline-url", "b:1"], ["'b:1'", "http://"]),
        (["--tasks", "gsm8k", "--json", "-", "--baseline", "none.json"], ["none.json"]),
        (["--tasks", "gsm8k", "--profile", "none.json"], ["none.json"]),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_measuring(
    lm_eval: FakeLmEval, args: list[str], words: list[str]
) -> None:
    refused(measure("--model", "m", *args), *words)
    assert lm_eval.calls == []


def test_a_profile_needs_a_baseline_unless_it_is_one(
    lm_eval: FakeLmEval, profile: Path, slower: Path, tmp_path: Path
) -> None:
    refused(measure("--model", "m", "--tasks", "gsm8k", "--profile", profile),
            "of fp8-w8a8", "--baseline FILE")  # fmt: skip
    refused(measure("--model", "m", "--tasks", "gsm8k", "--profile", slower, "--baseline-url",
                    "http://b"), "of bf16")  # fmt: skip
    assert lm_eval.calls == []
    done = measure("--model", "plain", "--tasks", "gsm8k", "--profile", slower)
    assert done.exit_code == 0, done.exception
    stored = Profile.load(slower).quality
    assert stored
    assert "recovery_pct" not in stored["tasks"]["gsm8k"]


def test_a_failed_measurement_leaves_the_profile_alone(lm_eval: FakeLmEval, profile: Path) -> None:
    before = profile.read_bytes()
    lm_eval.failure = RuntimeError("no data set")
    result = measure("--model", "m", "--tasks", "gsm8k", "--baseline-url", "http://b",
                     "--profile", profile)  # fmt: skip
    assert isinstance(result.exception, QsimError)
    assert result.exception.exit_code == 4
    assert profile.read_bytes() == before


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = measure("--model", "m", "--tasks", "gsm8k", "--json", "-")
    assert isinstance(result.exception, QsimError)
    assert result.exception.exit_code == 5
    assert "qsim[quality]" in str(result.exception)
