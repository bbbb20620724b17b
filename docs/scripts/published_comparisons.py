"""Other published figures, and the comparisons that no leaderboard row holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.calibrate.transfer.compose import Composer
from qsim.calibrate.transfer.kernels import load_tables
from qsim.calibrate.transfer.published import PublishedRow, evaluate, model_id
from qsim.calibrate.transfer.ratios import linear_of
from qsim.calibrate.transfer.spans import Spans, StepPoint
from qsim.catalog.gpus import gpu_type
from qsim.catalog.models import ARCHITECTURES, Architecture
from qsim.profiles.schema import Profile

__all__ = ["Compared", "energy_crossing", "old_power", "prefill_times", "trtllm_products"]


@dataclass(frozen=True)
class Compared:
    """A figure of ours beside a published one."""

    what: str
    ours: float
    published: float

    @property
    def error(self) -> float:
        """In percent."""
        return 100 * (self.ours / self.published - 1)


_LLAMA2_70B = {**ARCHITECTURES["llama-3.1-70b"], "vocab_size": 32000}
_MISTRAL_7B = {**ARCHITECTURES["llama-3.1-8b"], "vocab_size": 32768}
_NEMO_12B = {**_MISTRAL_7B, "hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 131072}

#: Splitwise (ISCA 2024; Mutinifni/splitwise-sim, data/perf_model.csv, MIT): ms of one prompt of
#: Llama-2-70B, medians: GPU, tensor-parallel size, tokens, ms
_SPLITWISE = (
    ("a100_sxm", 2, 1024, 377.1), ("a100_sxm", 2, 2048, 688.1), ("a100_sxm", 4, 1024, 227.1),
    ("a100_sxm", 4, 2048, 403.3), ("a100_sxm", 8, 1024, 154.5), ("a100_sxm", 8, 2048, 274.2),
    ("h100_sxm", 2, 1024, 158.0), ("h100_sxm", 2, 2048, 310.3), ("h100_sxm", 4, 1024, 105.6),
    ("h100_sxm", 4, 2048, 200.7), ("h100_sxm", 8, 1024, 77.9), ("h100_sxm", 8, 2048, 136.8),
)  # fmt: skip

#: ML.ENERGY leaderboard v2 (Apache-2.0): vLLM 0.5.4, chat, one A100-SXM4-40GB: model, config,
#: batch, mean output tokens, TPOT in ms, and W over the whole run
_OLD = (
    ("Mistral 7B", _MISTRAL_7B, 32, 424, 33.71, 218.8),
    ("Mistral 7B", _MISTRAL_7B, 64, 423, 47.68, 207.8),
    ("Mistral 7B", _MISTRAL_7B, 128, 422, 71.75, 207.5),
    ("Mistral 7B", _MISTRAL_7B, 256, 425, 118.41, 200.5),
    ("Mistral Nemo 12B", _NEMO_12B, 32, 436, 42.74, 242.3),
    ("Mistral Nemo 12B", _NEMO_12B, 64, 436, 57.09, 229.2),
    ("Mistral Nemo 12B", _NEMO_12B, 128, 437, 91.90, 215.0),
)

#: Splitwise, A100 of 80 GB, one request of Llama-2-70B: size, ms a token, mean power over the TDP
_DECODES = ((2, 53.68, 0.7356), (4, 42.42, 0.5942), (8, 43.03, 0.4353))


def prefill_times(teacher: Teacher) -> list[Compared]:
    """Prompts of Llama-2-70B as Splitwise measured them, at the power limit as there."""
    found = []
    for gpu, tp, tokens, ms in _SPLITWISE:
        profile = transfer(teacher, gpu, "llama-2-70b", _LLAMA2_70B, "bf16", tp)
        span = Spans(profile).ms(StepPoint(prefill_tokens=tokens))
        span *= 1 + profile.latency.throttle.eager
        found.append(Compared(f"{gpu}, tp{tp}, {tokens} tokens", span, ms))
    return found


def old_power(teacher: Teacher) -> list[Compared]:
    """W of an A100 at the time per token that old, host-bound servers reached.

    The energy of a step's work is ours, spread over the measured time, and the GPU is active all of
    that time, as these servers launched each kernel from the host, with gaps between.
    """
    found = []
    active_w = teacher.power.active_w * gpu_type("a100_sxm").tdp_w / teacher.power.spec.tdp_w
    for name, config, batch, output, tpot_ms, watts in _OLD:
        profile = transfer(teacher, "a100_sxm", model_id(name), config, "bf16")
        ours = _spread(
            profile, batch, batch * (125 + output), batch / output * 125, tpot_ms, active_w
        )
        found.append(Compared(f"{name}, batch {batch}", ours, watts))
    for tp, ms, share in _DECODES:
        profile = transfer(teacher, "a100_sxm", "llama-2-70b", _LLAMA2_70B, "bf16", tp)
        ours = _spread(profile, 1, 192, 1.0, ms, active_w) / tp
        found.append(Compared(f"Llama-2-70B on {tp} GPUs, batch 1", ours, share * 400))
    return found


def _spread(
    profile: Profile,
    batch: int,
    context: int,
    prompt_tokens: float,
    period_ms: float,
    active_w: float,
) -> float:
    """W of the server if a decode step's work is spread over ``period_ms``."""
    span = Spans(profile).ms(StepPoint(rows=batch, context_tokens=context))
    p = profile.power
    joules = p.busy_w * span / 1e3 + p.j_per_decode_token * batch
    joules += p.j_per_context_token * context + p.j_per_prefill_token * prompt_tokens
    tp = profile.identity.tensor_parallel_size
    joules += active_w * tp * max(0.0, period_ms - span) / 1e3
    return p.idle_w + joules / (period_ms / 1e3)


def trtllm_products(teacher: Teacher) -> list[Compared]:
    """Rules for quantized products on A100 against TensorRT-LLM's tables of such kernels.

    Both as a share of the bf16 products of the same table.
    """
    own, other = load_tables("a100_sxm"), load_tables("a100_sxm", "trtllm")
    pairs = (("awq-w4a16", "int4_wo"), ("gptq-w8a16", "int8_wo"), ("int8-w8a8", "sq"))
    found = []
    for model in ("llama-3.1-8b", "qwen2.5-32b"):
        a = Architecture.from_config(ARCHITECTURES[model], model)
        ours = Composer(own, gpu_type("a100_sxm"), a)
        theirs = Composer(other, gpu_type("a100_sxm"), a)
        for method, table in pairs:
            linear = linear_of(method, ours, teacher.shapes, teacher.tables)
            found += [
                Compared(
                    f"{model} {method}, {rows} rows",
                    linear.ms(rows) / ours.linear_ms(rows),
                    theirs.linear_ms(rows, table) / theirs.linear_ms(rows),
                )
                for rows in (1, 16, 64, 128, 256, 2048)
            ]
    return found


def energy_crossing(teacher: Teacher) -> list[dict[str, Any]]:
    """FP8 against bf16 on H100 by batch: energy a token, ITL and power, ratios.

    Chat as in the leaderboard (outputs of 650 tokens), greedy sampling.
    """
    found = []
    for model, tp in (("llama-3.1-8b", 1), ("qwen2.5-14b", 1), ("llama-3.1-70b", 4)):
        config = ARCHITECTURES[model]
        bf16 = transfer(teacher, "h100_sxm", model, config, "bf16", tp)
        fp8 = transfer(teacher, "h100_sxm", model, config, "fp8-w8a8", tp)
        for batch in (8, 16, 32, 64, 128, 256):
            row = PublishedRow(
                "lm-arena-chat", model, "h100_sxm", "", tp, batch, batch, 650.0, 1.0, 1.0, 1.0
            )
            a = evaluate(bf16, row, sort_s_per_logit=0.0)
            b = evaluate(fp8, row, sort_s_per_logit=0.0)
            found.append(
                {
                    "model": model,
                    "tp": tp,
                    "batch": batch,
                    "energy": b.joules_per_token / a.joules_per_token,
                    "itl": b.itl_ms / a.itl_ms,
                    "power": b.watts_per_gpu / a.watts_per_gpu,
                }
            )
    return found


def median_error(compared: list[Compared]) -> float:
    """Median of the absolute errors, percent."""
    return float(np.median([abs(c.error) for c in compared]))
