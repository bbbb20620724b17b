"""Compile the kernels of block-scaled FP8 for several models before their servers start.

    python tools/deepgemm.py llama-3.1-70b qwen2.5-32b qwen2.5-14b

vLLM runs 128 x 128 block-scaled FP8 with DeepGEMM, which compiles a kernel when a shape first needs
it. A server does so one after another when it starts, for some 150 s (Llama-3.1-8B). Here a process
for each matrix and range of step sizes does it, all at once and into the same cache; a server that
starts later finds them there. The 123 kernels of the three models above took 56 s on 32 CPUs.

It needs the GPUs for itself: run it before the first server.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qsim.catalog.models import load_model
from qsim.errors import ScenarioError

#: of a step, vLLM's max_num_batched_tokens in calibrations
MOST_TOKENS = 8192
#: step sizes up to each are one process's
RANGES = (256, 1100, MOST_TOKENS)
#: tile heights and widths that DeepGEMM chooses among, and waves of tiles on the GPU: sizes that
#: follow are those that vLLM 0.24 warms up (vllm/model_executor/warmup/deep_gemm_warmup.py)
HEIGHTS, WIDTHS, WAVES = (64, 128, 256), range(16, 257, 16), range(1, 11)


def matrices(models: Sequence[str]) -> list[tuple[int, int]]:
    """The weights (outputs N, inputs K) of all linear layers of the models, largest first."""
    known = [load_model(model, dummy_weights=True).architecture for model in models]
    found = {(n, k) for architecture in known for _, k, n, _ in architecture.linears()}
    return sorted(found, key=lambda x: (-x[0] * x[1], x))


def step_sizes(outputs: int, processors: int = 132) -> list[int]:
    """Step sizes, in tokens, that bring up every kernel of a matrix with that many outputs: small
    ones, multiples of the tiles, and where another wave of tiles begins on the GPU."""
    sizes = {1, 2, 4, *range(8, 65, 8)}
    for height in HEIGHTS:
        sizes.update(range(height, MOST_TOKENS + 1, height))
        for width in WIDTHS:
            sizes.update(wave * processors * height // -(-outputs // width) for wave in WAVES)
    return sorted(m for m in sizes if 1 <= m <= MOST_TOKENS)


def deep_gemm() -> Any:
    """vLLM's copy of DeepGEMM, without importing vLLM itself."""
    cache = os.environ.get("VLLM_CACHE_ROOT", os.path.expanduser("~/.cache/vllm"))
    os.environ.setdefault("DG_JIT_CACHE_DIR", os.path.join(cache, "deep_gemm"))
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vllm is not installed here; run this where the servers will run")
    folder = Path(spec.origin).parent
    for name, path in (("vllm", folder), ("vllm.third_party", folder / "third_party")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return import_module("vllm.third_party.deep_gemm")


def compile_range(gpu: int, n: int, k: int, sizes: Sequence[int]) -> None:
    """One matrix product of every size, which compiles what it needs."""
    torch: Any = import_module("torch")
    dg = sys.modules["vllm.third_party.deep_gemm"]
    dg.set_pdl(True)  # as vLLM does
    with torch.cuda.device(gpu):
        made: dict[str, Any] = {"device": f"cuda:{gpu}"}
        most, eight_bit = max(sizes), torch.float8_e4m3fn
        weight = torch.zeros((n, k), dtype=eight_bit, **made)
        weight_scale = torch.ones((n // 128, k // 128), dtype=torch.float32, **made)
        x = torch.zeros((most, k), dtype=eight_bit, **made)
        scale = torch.ones((most, k // 128), dtype=torch.float32, **made)
        out = torch.empty((most, n), dtype=torch.bfloat16, **made)
        for m in sizes:
            dg.fp8_gemm_nt(
                (x[:m], scale[:m]), (weight, weight_scale), out[:m], disable_ue8m0_cast=False
            )
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--gpus", default="0", help="to spread the processes over: 0,1")
    args = parser.parse_args(argv)
    try:
        gpus = [int(g) for g in args.gpus.split(",")]
        shapes = matrices(args.models)
    except ScenarioError as e:
        parser.error(str(e))
    except ValueError:
        parser.error(f"--gpus is {args.gpus!r}; must be numbers of GPUs: 0 or 0,1")
    begin, fork = time.monotonic(), multiprocessing.get_context("fork")
    deep_gemm()  # once, before the forks; it does not touch a GPU yet
    jobs = []
    for i, (n, k) in enumerate(shapes):
        low = 0
        for high in RANGES:
            sizes = [m for m in step_sizes(n) if low < m <= high]
            job = fork.Process(target=compile_range, args=(gpus[i % len(gpus)], n, k, sizes))
            job.start()
            jobs.append(job)
            low = high
    for job in jobs:
        job.join()
    failed = sum(job.exitcode != 0 for job in jobs)
    took = time.monotonic() - begin
    print(f"{len(jobs) - failed} of {len(jobs)} ranges compiled in {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
