"""Derives qsim/traces/data/*.json from the public traces in the optional folder ../shared/traces.

Run it from the checkout: ``python -m tests.traces.derive_presets``. Only figures that describe the
traces (quantiles, rates, correlations) are written, no rows of them.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from qsim.traces import Trace, load_trace
from qsim.traces.statistics import prefix_hit_blocks, trace_statistics
from qsim.traces.synth.lengths import QuantileTable

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "traces"
DATA = ROOT / "qsim" / "traces" / "data"

#: Where quantiles are kept: every percentile, and both tails.
P = (0.0, 0.001, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.999, 1.0)
COARSE_P = (0.0, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 1.0)

AZURE = "https://github.com/Azure/AzurePublicDataset"
AZURE_2023 = {
    "url": f"{AZURE}/blob/master/AzureLLMInferenceDataset2023.md",
    "licence": "CC-BY-4.0",
    "cite": "Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, "
    "ISCA 2024",
}
#: The statistics that a preset states of the real trace, to compare a draw with.
FACTS = (
    "requests", "duration_s", "mean_rps", "iat_cv", "iat_cv_within_60s_median", "count_fano_1s",
    "count_fano_60s", "prompt_tokens_mean", "prompt_tokens_p50", "prompt_tokens_p90",
    "prompt_tokens_p99", "output_tokens_mean", "output_tokens_p50", "output_tokens_p90",
    "output_tokens_p99", "log_length_corr", "prefix_block_hit_rate",
)  # fmt: skip


#: The share of later turns is lowered so that the block hit rate of draws is the trace's: a draw
#: always finds a predecessor of about the wanted size, the trace did not always have one.
LATER = 0.955


def significant(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def quantiles(values: Any, p: Sequence[float] = P) -> list[float]:
    return [significant(float(x)) for x in np.quantile(values, p)]


def facts(trace: Trace) -> dict[str, Any]:
    measured = trace_statistics(trace)
    return {
        key: measured[key] if isinstance(measured[key], int) else significant(measured[key])
        for key in FACTS
        if key in measured
    }


def rates(trace: Trace, steps: int) -> dict[str, Any]:
    step_s = trace.duration_s / steps
    index = np.minimum((trace.arrival_s / step_s).astype(int), steps - 1)
    counts = np.bincount(index, minlength=steps)
    return {
        "step_s": round(step_s, 6),
        "rates_rps": [significant(c / step_s) for c in counts.tolist()],
    }


def lengths(trace: Trace) -> dict[str, Any]:
    corr = np.corrcoef(np.log(trace.prompt_tokens), np.log(trace.output_tokens))[0, 1]
    return {
        "rho": round(float(corr), 3),
        "prompt_tokens": {"p": P, "values": quantiles(trace.prompt_tokens)},
        "output_tokens": {"p": P, "values": quantiles(trace.output_tokens)},
    }


def azure_conv_2023() -> dict[str, Any]:
    trace = load_trace(SHARED / "azure_2023_conv.csv.gz")
    return {
        "_sources": [{"title": "Azure LLM inference trace 2023, conversation", **AZURE_2023}],
        "description": "chat, one hour of a large service (Nov 2023)",
        "duration_s": round(trace.duration_s, 3),
        "profile": rates(trace, 58),
        "gaps": {"kind": "gamma", "cv": 1.03},
        **lengths(trace),
        "facts": facts(trace),
    }


def azure_code_2023() -> dict[str, Any]:
    trace = load_trace(SHARED / "azure_2023_code.csv.gz")
    # A silence of more than 2 s ends a busy spell.
    gaps = np.diff(trace.arrival_s)
    ends = np.flatnonzero(gaps > 2)
    first = np.concatenate([[0], ends + 1])
    last = np.concatenate([ends, [len(trace) - 1]])
    busy_s = np.maximum(trace.arrival_s[last] - trace.arrival_s[first], 0.1)
    return {
        "_sources": [{"title": "Azure LLM inference trace 2023, code", **AZURE_2023}],
        "description": "code completion, very bursty: long prompts, short outputs (Nov 2023)",
        "duration_s": round(trace.duration_s, 3),
        "profile": {"step_s": 3600.0, "rates_rps": [significant(len(trace) / trace.duration_s)]},
        "gaps": {"kind": "gamma", "cv": 1.6},
        "spells": {
            "busy_s": {"p": COARSE_P, "values": quantiles(busy_s, COARSE_P)},
            "quiet_s": {"p": COARSE_P, "values": quantiles(gaps[ends], COARSE_P)},
            "level_sigma": 0.44,
            "stratified": True,
        },
        **lengths(trace),
        "facts": facts(trace),
    }


def mooncake_conversation() -> dict[str, Any]:
    trace = load_trace(SHARED / "mooncake_conversation.jsonl.gz")
    return {
        "_sources": [
            {
                "title": "Mooncake conversation trace (FAST'25 release)",
                "url": "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces",
                "licence": "Apache-2.0",
                "cite": "Qin et al., Mooncake: Trading more storage for less computation, "
                "FAST 2025",
            }
        ],
        "description": "long chat with shared prefixes; arrivals in 3 s batches as published",
        "duration_s": round(trace.duration_s, 3),
        "profile": rates(trace, 12),
        "gaps": {"kind": "poisson", "cv": 1.0},
        "grid_s": 3.0,
        **lengths(trace),
        "prefixes": prefixes(trace),
        "facts": facts(trace),
    }


def prefixes(trace: Trace) -> dict[str, Any]:
    """How later turns relate to the latest request with the same longest prefix."""
    ids = trace.hash_ids
    assert ids is not None
    hits = prefix_hit_blocks(ids)
    blocks = np.diff(ids.offsets)
    latest: dict[int, int] = {}
    later = hits > 1
    age, growth, kept = [], [], []
    for i in range(len(trace)):
        if later[i]:
            before = latest[int(ids[i][hits[i] - 1])]
            age.append(max(trace.arrival_s[i] - trace.arrival_s[before], 1.0))
            growth.append(blocks[i] - blocks[before])
            kept.append(hits[i] / max(min(blocks[before], blocks[i]) - 1, 1))
        for one in ids[i].tolist():
            latest[one] = i
    edges = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    bins = np.searchsorted(edges, blocks, side="right")
    share = [later[bins == b].mean() if (bins == b).any() else 0.0 for b in range(len(edges) + 1)]
    branched = [k for k in kept if k < 1]
    p = (0.0, 0.02, *(i / 20 for i in range(1, 20)), 0.98, 1.0)
    return {
        "block_tokens": ids.block_tokens,
        "common_blocks": 1,
        "later_blocks": edges,
        "later_share": [significant(LATER * float(s), 4) for s in share],
        "age_s": {"p": p, "values": quantiles(age, p)},
        "growth_p": p,
        "growth_blocks": [float(np.round(g)) for g in np.quantile(growth, p)],
        "branch_share": significant(len(branched) / len(kept), 3),
        "branch_kept": significant(float(np.mean(branched)), 3),
    }


def with_mean(build: Callable[[float], QuantileTable], mean: float, low: float, high: float) -> Any:
    """The table whose free parameter, between low and high, gives the mean (bisection)."""
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if build(middle).mean < mean else (low, middle)
    table = build(low)
    return {"p": table.p, "values": [significant(v) for v in table.values]}


def lower_half(p50: float, p_high: float, at: float) -> list[tuple[float, float]]:
    """A log-normal through the median and another quantile, for the part below the median."""
    normal = NormalDist()
    sigma = math.log(p_high / p50) / normal.inv_cdf(at)
    p = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    return [(0.0, 1.0), *((x, max(1.0, p50 * math.exp(sigma * normal.inv_cdf(x)))) for x in p)]


def rows(name: str, **where: str) -> list[dict[str, str]]:
    with (SHARED / name).open(newline="") as f:
        return [r for r in csv.DictReader(f) if all(r[k] == v for k, v in where.items())]


def burstgpt() -> dict[str, Any]:
    hours = [float(r["session_count"]) for r in rows("burstgpt1_sessions_by_hour.csv")]
    mean_rps = 1404294 / 5269968
    hourly = [significant(mean_rps * h / (sum(hours) / 24)) for h in hours]

    def prompt(p75: float) -> QuantileTable:
        # 77.4% of the requests have their own 90th percentile at 2161, so about 8% are longer.
        points = [*lower_half(262, 1824, 0.9), (0.75, p75), (0.9, 1824), (0.92, 2161)]
        return QuantileTable.of(*zip(*points, (0.99, 3700), (1.0, 16000), strict=True))

    def output(p99: float) -> QuantileTable:
        points = [*lower_half(36, 276, 0.9), (0.9, 276), (0.99, p99), (1.0, 4096)]
        return QuantileTable.of(*zip(*points, strict=True))

    return {
        "_sources": [
            {
                "title": "BurstGPT_1.csv, requests that did not fail",
                "url": "https://github.com/HPMLL/BurstGPT",
                "licence": "CC-BY-4.0",
                "cite": "Wang et al., BurstGPT: A real-world workload dataset to optimize LLM "
                "serving systems, KDD 2025",
                "what": "request count, span, medians, 90th percentiles, mean lengths, gap "
                "quantiles and Fano factor as published by users of the trace; counts by hour "
                "of the day",
                "assumed": "prompts: the 75th percentile (fitted to the mean) and the 99th (a "
                "context of 4,096 tokens); outputs: the 99th percentile (fitted to the mean); "
                "both: the shape below the median (log-normal); 5-minute busy spells, whose share "
                "and rates are fitted to the gap quantiles and the Fano factor",
            }
        ],
        "description": "a university's ChatGPT and GPT-4 use, bursty, day and night (2023)",
        "duration_s": 86400.0,
        "profile": {"step_s": 3600.0, "rates_rps": hourly},
        "gaps": {"kind": "poisson", "cv": 1.0},
        "spells": {
            "busy_s": {"exponential": 300.0},
            "quiet_s": {"exponential": 950.0},
            "quiet_level": 0.03,
            "level_sigma": 0.3,
            "stratified": True,
        },
        "grid_s": 1.0,
        "rho": 0.24,
        "prompt_tokens": with_mean(prompt, 621, 263, 1823),
        "output_tokens": with_mean(output, 126, 277, 4000),
        "facts": {
            "requests": 1404294, "duration_s": 5269968.0, "mean_rps": significant(mean_rps),
            "iat_p50_s": 1.0, "iat_p90_s": 4.0, "iat_p99_s": 54.0, "count_fano_1s": 2.01,
            "prompt_tokens_mean": 621.0, "prompt_tokens_p50": 262.0, "prompt_tokens_p90": 1824.0,
            "output_tokens_mean": 126.0, "output_tokens_p50": 36.0, "output_tokens_p90": 276.0,
        },
    }  # fmt: skip


def azure_conv_2024_week() -> dict[str, Any]:
    table = rows("azure_2024_rate_10min_digitized.csv", trace="azure_2024_conv")
    inputs = rows("azure_2024_input_quantiles_digitized.csv", trace="azure_2024_conv")
    p = [0.0, *(float(r["percentile"]) / 100 for r in inputs), 1.0]
    prompt = [float(r["value"]) for r in inputs]

    def output(p80: float) -> QuantileTable:
        # The 80th percentile is fitted to the published mean; the plot reads "about 200".
        points = [*lower_half(41, p80, 0.8), (0.8, p80), (0.95, 455.0), (0.99, 694.0)]
        return QuantileTable.of(*zip(*points, (0.999, 1000.0), (1.0, 4096.0), strict=True))

    return {
        "_sources": [
            {
                "title": "Azure LLM inference trace 2024, conversation, one week",
                "url": f"{AZURE}/blob/master/AzureLLMInferenceDataset2024.md",
                "licence": "CC-BY-4.0",
                "cite": "Stojkovic et al., DynamoLLM: Designing LLM inference clusters for "
                "performance and energy efficiency, HPCA 2025",
                "what": "rates of 10 minutes and prompt quantiles digitized from the plots of the "
                "official notebook (within about 1% and 30 tokens), scaled to the published row "
                "count; mean lengths, output median, 95th and 99th percentiles and longest "
                "prompt as published by users of the trace",
                "assumed": "gap CV of the 2023 trace; the output's shape below the median "
                "(log-normal) and above p99; lengths independent of each other and of "
                "the hour",
            }
        ],
        "description": "chat, a week of a large service, 27.3 M requests (May 2024)",
        "duration_s": 604800.0,
        "profile": {"step_s": 600.0, "rates_rps": [float(r["rate_rps"]) for r in table]},
        "gaps": {"kind": "gamma", "cv": 1.03},
        "rho": 0.0,
        "prompt_tokens": {"p": p, "values": [1.0, *prompt, 7999.0]},
        "output_tokens": with_mean(output, 106, 60, 454),
        "facts": {
            "requests": 27303999, "duration_s": 604799.994, "mean_rps": 45.146,
            "prompt_tokens_mean": 1632.0, "prompt_tokens_p50": 928.0, "prompt_tokens_p99": 6683.0,
            "output_tokens_mean": 106.0, "output_tokens_p50": 41.0, "output_tokens_p99": 694.0,
        },
    }  # fmt: skip


def servegen_lengths() -> dict[str, Any]:
    cumulative: dict[tuple[str, str], float] = defaultdict(float)
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for r in rows("servegen_length_hist.csv"):
        key = (r["model"], r["field"])
        prob = float(r["prob"])
        if prob < 2e-5 or float(r["bin_hi"]) < 1:
            continue
        if not points[key]:
            points[key].append((0.0, max(1.0, float(r["bin_lo"]))))
        cumulative[key] += prob
        points[key].append((cumulative[key], float(r["bin_hi"])))
    tables: dict[str, dict[str, Any]] = defaultdict(dict)
    for (model, field), pairs in points.items():
        total = cumulative[model, field]
        p = [round(x / total, 6) for x, _ in pairs[:-1]] + [1.0]
        name = {"in": "prompt_tokens", "out": "output_tokens"}[field]
        tables[model][name] = {"p": p, "values": [v for _, v in pairs]}
    return {
        "_sources": [
            {
                "title": "ServeGen client data",
                "url": "https://github.com/alibaba/ServeGen",
                "licence": "Apache-2.0",
                "cite": "Xiang et al., ServeGen: Workload characterization and generation of large "
                "language model serving in production, 2025",
                "what": "length histograms over the published clients of each model",
                "assumed": "m-large, m-mid and m-small lack the clients whose dataset files are "
                "not public (37%, 29% and 57% of the requests); mm-image has no prompt lengths",
            }
        ],
        "models": dict(tables),
    }


BUILDERS = {
    "azure-conv-2023": azure_conv_2023,
    "azure-code-2023": azure_code_2023,
    "mooncake-conversation": mooncake_conversation,
    "burstgpt": burstgpt,
    "azure-conv-2024-week": azure_conv_2024_week,
    "servegen-lengths": servegen_lengths,
}


def text_of(data: dict[str, Any]) -> str:
    """JSON with one short list a line."""
    parts = []
    for key, value in data.items():
        compact = key not in ("_sources", "models")
        body = json.dumps(value) if compact else json.dumps(value, indent=1)
        parts.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    for name, build in BUILDERS.items():
        (DATA / f"{name}.json").write_text(text_of(build()))
