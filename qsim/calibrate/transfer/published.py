"""Transferred profiles against ML.ENERGY's measurements of vLLM (leaderboard v3, vLLM 0.11.1).

ML.ENERGY sends all requests of a task at once to a server with a limit ``max_num_seqs`` and
evaluates the time in which as many run. The same is evaluated here, in closed form: B requests
decode over a mean context; each finished one is replaced by a prefill chunk in the next step. Its
clients sample with top-p 0.95, for which vLLM 0.11 sorts the logits of every row at each step. No
profile holds that (they were measured with greedy sampling); it is added here, by one coefficient
for all models: ``SORT_S_PER_LOGIT`` on H100, in inverse proportion to the bandwidth elsewhere.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.catalog.gpus import gpu_type
from qsim.catalog.models import ARCHITECTURES, Architecture
from qsim.errors import CalibrationError, ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.engine.timing import PS_PER_MS, Timing
from qsim.sim.scheduler.config import EngineOptions

#: seconds per logit of a step's rows for top-p sampling on H100, the only number here that was
#: fitted to ML.ENERGY's rows
SORT_S_PER_LOGIT = 0.35e-9

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}


def _numbers(
    hidden: int, intermediate: int, layers: int, heads: int, **more: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


#: the dense models of the leaderboard, by the numbers of their public config.json. Mixtures of
#: experts and Mamba hybrids are left out: qsim has no kernels for them. So is Llama-3.1-405B-FP8,
#: whose attention projections stay in bf16. Gemma 3 attends to the last 1,024 tokens in five of six
#: layers; contexts here are shorter.
PUBLISHED_MODELS: dict[str, dict[str, Any]] = {
    "Llama 3.1 8B": ARCHITECTURES["llama-3.1-8b"],
    "Llama 3.1 70B": ARCHITECTURES["llama-3.1-70b"],
    "Llama 3.3 70B": ARCHITECTURES["llama-3.1-70b"],
    "Qwen 3 8B": {**_QWEN3, **_numbers(4096, 12288, 36, 32)},
    "Qwen 3 14B": {**_QWEN3, **_numbers(5120, 17408, 40, 40)},
    "Qwen 3 32B": {**_QWEN3, **_numbers(5120, 25600, 64, 64)},
    "Gemma 3 12B": {
        **_GEMMA3, **_numbers(3840, 15360, 48, 16, num_key_value_heads=8, head_dim=256)
    },
    "Gemma 3 27B": {
        **_GEMMA3, **_numbers(5376, 21504, 62, 32, num_key_value_heads=16, head_dim=128)
    },
}  # fmt: skip

_GPUS = {"H100": "h100_sxm", "A100": "a100_sxm", "H200": "h200_sxm"}
_PRECISIONS = {"bfloat16": "bf16", "fp8": "fp8-w8a8"}


@dataclass(frozen=True)
class PublishedRow:
    """One measured configuration."""

    task: str
    model: str
    gpu: str
    method: str
    tensor_parallel_size: int
    max_num_seqs: int
    batch: float
    output_tokens: float
    itl_ms: float
    watts_per_gpu: float
    joules_per_token: float

    @property
    def context_tokens(self) -> float:
        """Mean context of a running request.

        Chat: prompt of 125 tokens and once the mean output, as outputs vary much; what two
        servers whose KV cache was full held (Qwen3-8B at 474 and Llama-3.3-70B at 724 requests).
        Reasoning (gpqa): all 198 requests start almost together, so about half the output, and 200
        prompt tokens; again as two full KV caches say (Qwen3-8B at 82, Qwen3-14B at 59 requests).
        """
        if self.task == "gpqa":
            return 200.0 + 0.55 * self.output_tokens
        return 125.0 + self.output_tokens

    @property
    def prompt_tokens(self) -> float:
        """Mean prompt."""
        return 200.0 if self.task == "gpqa" else 125.0


@dataclass(frozen=True)
class Outcome:
    """What the profile says about a published row."""

    row: PublishedRow
    itl_ms: float
    watts_per_gpu: float
    joules_per_token: float

    def to_dict(self) -> dict[str, Any]:
        """The row, the outcome and its errors in percent."""
        return {
            **asdict(self.row),
            "simulated_itl_ms": round(self.itl_ms, 3),
            "simulated_watts_per_gpu": round(self.watts_per_gpu, 2),
            "simulated_joules_per_token": round(self.joules_per_token, 5),
            "itl_error_percent": round(self.itl_error, 2),
            "power_error_percent": round(self.power_error, 2),
            "energy_error_percent": round(self.energy_error, 2),
        }

    @property
    def itl_error(self) -> float:
        """In percent."""
        return 100 * (self.itl_ms / self.row.itl_ms - 1)

    @property
    def power_error(self) -> float:
        """In percent."""
        return 100 * (self.watts_per_gpu / self.row.watts_per_gpu - 1)

    @property
    def energy_error(self) -> float:
        """In percent."""
        return 100 * (self.joules_per_token / self.row.joules_per_token - 1)


def read_published(path: Path) -> list[PublishedRow]:
    """The rows of dense models on known GPUs, from a CSV with the leaderboard's fields.

    Raises
    ------
    CalibrationError
        If the file cannot be read or a field is missing or no number.
    """
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as f:
            for line in csv.DictReader(f):
                row = _row(line)
                if row is not None:
                    rows.append(row)
    except OSError as e:
        raise CalibrationError(f"cannot read {path}: {e.strerror or e}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise CalibrationError(f"{path}: not a table of the ML.ENERGY leaderboard: {e}") from e
    return rows


def _row(line: dict[str, str]) -> PublishedRow | None:
    gpu = _GPUS.get(line["gpu_model"].split("-")[0].removeprefix("NVIDIA ").strip())
    name = line["nickname"].removesuffix(" FP8").removesuffix(" Instruct").strip()
    method = _PRECISIONS.get(line["weight_precision"])
    if gpu is None or method is None or name not in PUBLISHED_MODELS:
        return None
    if int(line["expert_parallel"]) > 1 or int(line["data_parallel"]) > 1:
        return None
    return PublishedRow(
        line["task"],
        name,
        gpu,
        method,
        int(line["tensor_parallel"]),
        int(line["max_num_seqs"]),
        float(line["avg_batch_size"]),
        float(line["avg_output_len"]),
        float(line["median_itl_ms"]),
        float(line["power_per_gpu_watts"]),
        float(line["energy_per_token_joules"]),
    )


def evaluate(
    profile: Profile, row: PublishedRow, *, sort_s_per_logit: float = SORT_S_PER_LOGIT
) -> Outcome:
    """Steady state of ``row`` under ``profile``: median ITL, power and energy.

    A step holds a chunk with probability ``1 - exp(-B / output)``. The median ITL is that of a step
    without one. Beyond that probability of a half it need not be, but requests end in clusters:
    measured 90th percentiles lie 35 to 50% above the medians there.
    """
    config = EngineOptions(max_num_seqs=1024, max_num_batched_tokens=8192).resolve(profile)
    timing, power, tp = Timing(profile, config), profile.power, row.tensor_parallel_size
    batch = max(1, round(row.batch))
    context = round(batch * row.context_tokens)
    a = Architecture.from_config(profile.identity.architecture, profile.id)
    bandwidth = gpu_type("h100_sxm").bandwidth_bytes_s / gpu_type(row.gpu).bandwidth_bytes_s
    sort_ms = 1e3 * sort_s_per_logit * bandwidth * batch * a.vocab_size
    arrivals = batch / row.output_tokens
    mixed_share = 1 - exp(-arrivals)
    chunks = max(1, round(arrivals / mixed_share))
    prompt = round(row.prompt_tokens)
    pairs = prompt * (prompt + 1) / 2
    level = 0.0
    for _ in range(20):
        factors = tuple(1 + f * level for f in timing.throttle)
        plain = timing.decode_span_ps(batch, context, factors[0]) / PS_PER_MS + sort_ms
        mixed = (
            sort_ms
            + timing.mixed_span_ps(
                batch + chunks * prompt,
                batch,
                context,
                [(prompt, 0)] * chunks,
                (factors[0], factors[1], factors[2]),
            )[1]
            / PS_PER_MS
        )
        mean = plain * (1 - mixed_share) + mixed * mixed_share
        work = (
            power.j_per_decode_token * batch
            + power.j_per_context_token * context
            + arrivals * (power.j_per_prefill_token * prompt + power.j_per_pair * pairs)
        )
        watts = power.idle_w + power.busy_w + work / (mean / 1e3)
        start, full = timing.throttle_start_w, timing.throttle_full_w
        want = min(1.0, max(0.0, (min(watts, power.cap_w) - start) / (full - start)))
        level += 0.5 * (want - level)
    watts = min(watts, power.cap_w)
    return Outcome(row, plain, watts / tp, watts * mean / 1e3 / batch)


def needed(rows: Sequence[PublishedRow]) -> list[tuple[str, str, str, int]]:
    """GPU, model, method and tensor-parallel size of the profiles that rows need."""
    keys = {(r.gpu, r.model, r.method, r.tensor_parallel_size) for r in rows}
    return sorted(keys)


def model_id(name: str) -> str:
    """A published model's name as an id: ``Qwen 3 8B`` is ``qwen-3-8b``."""
    return name.lower().replace(" ", "-")


def outcomes(teacher: Teacher, path: Path) -> list[Outcome]:
    """Every dense row of a leaderboard file, evaluated."""
    rows = read_published(path)
    profiles: dict[tuple[str, str, str, int], Profile | None] = {}
    for key in needed(rows):
        gpu, model, method, tp = key
        try:
            profiles[key] = transfer(
                teacher, gpu, model_id(model), PUBLISHED_MODELS[model], method, tp
            )
        except (CalibrationError, ScenarioError):
            profiles[key] = None  # a table lacks its shapes, or it does not fit
    found = []
    for r in rows:
        profile = profiles[(r.gpu, r.model, r.method, r.tensor_parallel_size)]
        if profile is not None:
            found.append(evaluate(profile, r))
    return found


def median_percent(values: Sequence[float]) -> float:
    """The median of the absolute values."""
    return float(np.median(np.abs(values)))


def summary(found: Sequence[Outcome]) -> str:
    """The median errors in words."""
    itl = median_percent([o.itl_error for o in found])
    power = median_percent([o.power_error for o in found])
    energy = median_percent([o.energy_error for o in found])
    return (
        f"median error over {len(found)} rows: ITL {itl:.1f}%, power {power:.1f}%, energy a token "
        f"{energy:.1f}%"
    )
