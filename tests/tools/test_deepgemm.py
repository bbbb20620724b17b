"""``tools/deepgemm.py``: which matrices and step sizes are multiplied, and what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "deepgemm.py"

#: a torch whose tensors know their shape, and a DeepGEMM that notes its calls
TORCH = """
import contextlib
float8_e4m3fn = float32 = bfloat16 = None
class Tensor:
    def __init__(self, shape): self.shape = shape
    def __getitem__(self, rows): return Tensor((rows.stop, *self.shape[1:]))
def zeros(shape, dtype, device): return Tensor(shape)
ones = empty = zeros
class cuda:
    device = staticmethod(lambda gpu: contextlib.nullcontext())
    synchronize = staticmethod(lambda: None)
"""
DEEP_GEMM = """
import json, os
def set_pdl(on): assert on
def fp8_gemm_nt(x, weight, out, disable_ue8m0_cast):
    (a, a_scale), (w, w_scale) = x, weight
    assert a.shape[1] == w.shape[1] == 128 * a_scale.shape[1] == 128 * w_scale.shape[1]
    assert w.shape[0] == out.shape[1] == 128 * w_scale.shape[0]
    assert a.shape[0] == a_scale.shape[0] == out.shape[0] and not disable_ue8m0_cast
    if list(w.shape) == json.loads(os.environ.get("FAIL", "0")):
        raise RuntimeError("no such kernel")
    with open(os.environ["CALLS"], "a") as f:
        f.write(json.dumps([*w.shape, a.shape[0]]) + "\\n")
"""


Calls = set[tuple[int, int, int]]


def run(tmp_path: Path, *args: str, **env: str) -> tuple[subprocess.CompletedProcess[str], Calls]:
    vllm = tmp_path / "vllm"
    (vllm / "third_party" / "deep_gemm").mkdir(parents=True)
    (vllm / "__init__.py").write_text("raise RuntimeError('vllm itself must not be imported')")
    (vllm / "third_party" / "deep_gemm" / "__init__.py").write_text(DEEP_GEMM)
    (tmp_path / "torch.py").write_text(TORCH)
    calls = tmp_path / "calls"
    path = os.pathsep.join([str(tmp_path), str(SCRIPT.parents[1])])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        env={**os.environ, "PYTHONPATH": path, "CALLS": str(calls), **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = calls.read_text().splitlines() if calls.exists() else []
    assert len(lines) == len(set(lines))  # nothing twice
    return done, {tuple(json.loads(line)) for line in lines}


def test_every_matrix_meets_every_kernel_once(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "qwen2.5-14b", "qwen2.5-32b", "--gpus", "0,1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("18 of 18 ranges compiled")
    # the two models share their attention's matrices
    matrices = {(7168, 5120), (5120, 5120), (27648, 5120), (5120, 13824)}
    matrices |= {(55296, 5120), (5120, 27648)}
    assert {c[:2] for c in calls} == matrices
    for n, k in matrices:
        sizes = {m for a, b, m in calls if (a, b) == (n, k)}
        # small steps, all tiles, and the first size with more than one wave of 64 x 128 tiles
        assert {1, 2, 4, 8, 64, *range(64, 8193, 64), 132 * 64 // -(-n // 128)} <= sizes
        assert max(sizes) == 8192


def test_a_kernel_that_does_not_compile_is_told(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "qwen2.5-14b", FAIL="[27648, 5120]")
    assert done.returncode == 1
    assert done.stdout.startswith("9 of 12 ranges compiled")
    assert "no such kernel" in done.stderr
    assert (5120, 5120) in {c[:2] for c in calls}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["llama-3.1-9b"], "model is 'llama-3.1-9b'; must be one of llama-3.1-8b"),
        (["qwen2.5-14b", "--gpus", "all"], "--gpus is 'all'; must be numbers of GPUs: 0 or 0,1"),
    ],
)
def test_bad_arguments_are_told(tmp_path: Path, args: list[str], told: str) -> None:
    done, calls = run(tmp_path, *args)
    assert done.returncode == 2
    assert told in done.stderr
    assert not calls


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_it_says_where_to_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "qwen2.5-14b"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "vllm is not installed here" in done.stderr
