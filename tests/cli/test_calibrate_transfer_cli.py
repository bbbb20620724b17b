"""``qsim calibrate transfer``; most of it needs the kernel tables of aiconfigurator-core."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qsim.profiles.lookup import SHARDED_FOLDER, list_profiles, list_sharded, load_profile
from qsim.profiles.schema import Profile
from tests.cli.helpers import fails, qsim

HEAD = (
    "task,nickname,weight_precision,gpu_model,tensor_parallel,expert_parallel,data_parallel,"
    "max_num_seqs,avg_batch_size,avg_output_len,median_itl_ms,power_per_gpu_watts,"
    "energy_per_token_joules\n"
)
needs_tables = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="needs aiconfigurator-core"
)


def test_without_the_tables_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsim.calibrate.transfer.kernels.find_spec", lambda name: None)
    result = qsim("calibrate", "transfer", "--all")
    assert result.exit_code != 0
    assert "aiconfigurator-core" in result.stderr
    assert "qsim[transfer]" in result.stderr


def test_what_is_missing_is_said() -> None:
    fails(qsim("calibrate", "transfer"), 2, "nothing to do; give --to")


@needs_tables
def test_to_another_gpu(tmp_path: Path) -> None:
    result = qsim("calibrate", "transfer", "--to", "a100_sxm", "--model", "llama-3.1-8b",
                  "--methods", "bf16,awq-w4a16", "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    p = Profile.load(tmp_path / "a100_sxm" / "llama-3.1-8b" / "awq-w4a16.json")
    assert p.transferred
    assert "error %" not in result.stderr
    # a GPU with less memory
    small = qsim("calibrate", "transfer", "--to", "a100_sxm", "--model", "llama-3.1-8b",
                 "--methods", "bf16", "--gpu-memory-gib", "39.4",
                 "--out", tmp_path / "s")  # fmt: skip
    assert small.exit_code == 0
    less = Profile.load(tmp_path / "s" / "a100_sxm" / "llama-3.1-8b" / "bf16.json")
    full = Profile.load(tmp_path / "a100_sxm" / "llama-3.1-8b" / "bf16.json")
    assert less.memory.num_gpu_blocks < full.memory.num_gpu_blocks / 2
    fails(
        qsim("calibrate", "transfer", "--to", "a100_sxm", "--model", "llama-3.1-8b",
             "--methods", "w4a8-fp8", "--out", tmp_path), 2, "needs compute capability 9.0",
    )  # fmt: skip
    fails(
        qsim("calibrate", "transfer", "--to", "a100_sxm", "--model", "llama-3.1-8b",
             "--methods", "bf16+kv-fp8", "--out", tmp_path), 2, "no attention kernel for an FP8 KV",
    )  # fmt: skip


@needs_tables
def test_of_a_config_json(tmp_path: Path) -> None:
    folder = tmp_path / "My-3B"
    folder.mkdir()
    config = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
              "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256,
              "max_position_embeddings": 8192, "head_dim": 128}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    result = qsim("calibrate", "transfer", "--to", "h200_sxm", "--model", folder / "config.json",
                  "--methods", "bf16,fp8-w8a8+kv-fp8", "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    made = tmp_path / "out" / "h200_sxm" / "my-3b"
    p = Profile.load(made / "bf16.json")
    larger = load_profile("h200_sxm/llama-3.1-8b/bf16")
    assert 0.3 < p.latency.decode.base_ms[0] / larger.latency.decode.base_ms[0] < 0.8
    half = Profile.load(made / "fp8-w8a8+kv-fp8.json")
    assert half.memory.kv_bytes_per_token * 2 == p.memory.kv_bytes_per_token


@needs_tables
def test_h200_is_predicted_from_the_other_models() -> None:
    name = "h200_sxm/qwen2.5-14b/bf16"
    rows = json.loads(qsim("calibrate", "transfer", "--check", name, "--json").stdout)
    median = {r["quantity"]: r["median"] for r in rows}
    assert median["decode"] < 5
    assert median["piecewise"] < 8
    assert median["eager"] < 8
    assert median["power"] < 10
    assert median["kv_tokens"] < 3
    text = qsim("calibrate", "transfer", "--check", name).stdout
    assert "piecewise" in text


@needs_tables
def test_a_transferred_profile_is_no_reference(tmp_path: Path) -> None:
    qsim("calibrate", "transfer", "--to", "h100_sxm", "--model", "llama-3.1-8b",
         "--methods", "bf16", "--out", tmp_path)  # fmt: skip
    path = tmp_path / "h100_sxm" / "llama-3.1-8b" / "bf16.json"
    fails(qsim("calibrate", "transfer", "--check", path), 2, "which is transferred itself")


@needs_tables
def test_published_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        HEAD
        + "lm-arena-chat,Qwen 3 8B,bfloat16,H100,1,1,1,32,31.94,646.8,10.569,478.08,0.16328\n"
        + "lm-arena-chat,Qwen 3 14B,bfloat16,H100,1,1,1,64,63.84,617.2,18.936,524.98,0.16717\n"
    )
    rows = json.loads(qsim("calibrate", "transfer", "--published", path, "--json").stdout)
    assert [r["model"] for r in rows] == ["Qwen 3 8B", "Qwen 3 14B"]
    for r in rows:
        assert abs(r["itl_error_percent"]) < 10
        assert abs(r["power_error_percent"]) < 12
    one = tmp_path / "one.csv"
    one.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    text = qsim("calibrate", "transfer", "--published", one).stdout
    assert "median error over 1 rows" in text

    out = tmp_path / "transfer.md"
    script = Path(__file__).parents[2] / "docs" / "scripts" / "transfer_page.py"
    subprocess.run([sys.executable, script, "--published", path, "--out", out], check=True)
    page = out.read_text(encoding="utf-8")
    assert "Median error over 2 rows" in page
    shipped = script.parents[1] / "transfer.md"
    assert page.splitlines()[:40] == shipped.read_text(encoding="utf-8").splitlines()[:40]


@needs_tables
def test_the_shipped_ones_are_what_the_command_makes(tmp_path: Path) -> None:
    result = qsim("calibrate", "transfer", "--all", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    shipped = {e.id: e.path for e in list_profiles()}
    shipped = {i: p for i, p in shipped.items() if Profile.load(p).transferred}
    shipped |= {f"{SHARDED_FOLDER}/{e.id}": e.path for e in list_sharded()}
    made = {p.relative_to(tmp_path).with_suffix("").as_posix(): p for p in tmp_path.rglob("*.json")}
    assert set(made) == set(shipped)
    for i, path in made.items():
        a, b = json.loads(path.read_text()), json.loads(shipped[i].read_text())
        assert a["identity"] == b["identity"], i
        assert a["memory"] == b["memory"], i
        assert a["transfer"]["error_percent"] == b["transfer"]["error_percent"], i
        assert a["latency"]["decode"]["base_ms"] == pytest.approx(
            b["latency"]["decode"]["base_ms"], rel=1e-4
        ), i
        assert a["power"] == pytest.approx(b["power"], rel=1e-3, abs=1e-9), i
