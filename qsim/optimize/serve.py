"""The ``vllm serve`` command that starts what was simulated."""

from __future__ import annotations

import csv
import shlex
from importlib import resources

from qsim.errors import InfeasibleError
from qsim.optimize.plan_result import Candidate
from qsim.sim.config import EngineConfig

__all__ = ["checkpoint", "serve_command"]


def checkpoint(model: str, method: str) -> str:
    """A public Hugging Face checkpoint of ``model`` quantized by ``method``.

    For a combination that qsim knows none of, a path to replace by your own:
    ``path/to/<model>-<method>``.
    """
    text = (resources.files("qsim.optimize") / "data" / "checkpoints.csv").read_text("utf-8")
    weights = method.removesuffix("+kv-fp8")  # the same weights, another cache
    for row in csv.DictReader(text.splitlines()):
        if (row["model"], row["method"]) == (model, weights):
            return row["checkpoint"]
    return f"path/to/{model}-{method}"


def serve_command(candidate: Candidate, port: int = 8000) -> str:
    """The command that starts one replica of ``candidate``, ready for a shell.

    Every engine setting that the simulation used is told, also where it is vLLM's default: the
    default depends on the GPU and on vLLM's version, and the prediction holds for these.

    Raises
    ------
    InfeasibleError
        If the candidate meets no SLO with any fleet, so that there is nothing to start.
    """
    if not candidate.feasible or candidate.engine is None:
        raise InfeasibleError(f"{candidate.profile} is infeasible: {candidate.reason}")
    engine, options = candidate.engine, candidate.options
    words = ["vllm", "serve", checkpoint(candidate.model, candidate.method)]
    words += candidate.vllm_args
    words += ["--tensor-parallel-size", str(candidate.tensor_parallel_size)]
    words += ["--max-model-len", str(engine.max_model_len)]
    words += ["--max-num-seqs", str(engine.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    if options.kv_cache_memory_bytes is not None:
        words += ["--kv-cache-memory-bytes", str(options.kv_cache_memory_bytes)]
    if options.num_gpu_blocks_override is not None:
        words += ["--num-gpu-blocks-override", str(options.num_gpu_blocks_override)]
    words += _switches(engine)
    words += ["--port", str(port)]
    return shlex.join(words)


def _switches(engine: EngineConfig) -> list[str]:
    words = []
    prefix = "" if engine.enable_prefix_caching else "no-"
    words.append(f"--{prefix}enable-prefix-caching")
    words.append(f"--{'' if engine.async_scheduling else 'no-'}async-scheduling")
    if engine.long_prefill_token_threshold:
        words += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if engine.scheduling_policy != "fcfs":
        words += ["--scheduling-policy", engine.scheduling_policy]
    return words
