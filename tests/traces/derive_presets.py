"""Derives qsim/traces/data/*.json from the public traces in the optional folder ../shared/traces.

Run it from the checkout: ``python tests/traces/derive_presets.py``. Only figures that describe the
traces (quantiles, rates, correlations) are written, no rows of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from qsim.traces import Trace, load_trace

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "traces"
DATA = ROOT / "qsim" / "traces" / "data"

#: Where quantiles are kept: every percentile, and both tails.
P = (0.0, 0.001, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.999, 1.0)

AZURE_2023 = {
    "title": "Azure LLM inference trace 2023 ({})",
    "url": "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md",
    "licence": "CC-BY-4.0",
    "cite": "Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, "
    "ISCA 2024",
    "what": "quantiles of the lengths, request counts in equal steps of time, correlation of "
    "the logarithms of the lengths",
}


def quantiles(values: np.ndarray[Any, Any]) -> list[float]:
    return [round(float(x), 1) for x in np.quantile(values, P)]


def rates(trace: Trace, steps: int) -> dict[str, Any]:
    step_s = trace.duration_s / steps
    index = np.minimum((trace.arrival_s / step_s).astype(int), steps - 1)
    counts = np.bincount(index, minlength=steps)
    return {
        "step_s": round(step_s, 6),
        "rates_rps": [round(c / step_s, 4) for c in counts.tolist()],
    }


def azure_conv_2023() -> dict[str, Any]:
    trace = load_trace(SHARED / "azure_2023_conv.csv.gz")
    log_corr = np.corrcoef(np.log(trace.prompt_tokens), np.log(trace.output_tokens))[0, 1]
    return {
        "_sources": [{**AZURE_2023, "title": AZURE_2023["title"].format("conversation")}],
        "description": "chat: one hour of a conversation service, November 2023",
        "duration_s": round(trace.duration_s, 6),
        "profile": rates(trace, 58),
        "gaps": {"kind": "gamma", "cv": 1.02},
        "rho": round(float(log_corr), 4),
        "p": P,
        "prompt_tokens": quantiles(trace.prompt_tokens),
        "output_tokens": quantiles(trace.output_tokens),
        "facts": {"requests": len(trace)},
    }


def write(name: str, data: dict[str, Any]) -> None:
    (DATA / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    write("azure-conv-2023", azure_conv_2023())
