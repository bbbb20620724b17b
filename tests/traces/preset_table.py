"""The table of docs/traces.md: what presets draw (seed 0) beside what the real traces have.

``python -m tests.traces.preset_table`` prints it.
"""

from __future__ import annotations

from qsim.traces import load_trace, trace_statistics
from qsim.traces.synth.presets import load_preset

#: The week is drawn in part: one day, a tenth of the traffic.
DRAWS = {
    "azure-conv-2023": "azure-conv-2023",
    "azure-code-2023": "azure-code-2023",
    "mooncake-conversation": "mooncake-conversation",
    "burstgpt": "burstgpt",
    "azure-conv-2024-week": "azure-conv-2024-week:day=2,scale=0.1",
}
ROWS = {
    "mean_rps": "requests/s",
    "iat_cv": "gap CV",
    "iat_cv_within_60s_median": "gap CV within 60 s",
    "count_fano_1s": "Fano factor, 1 s",
    "count_fano_60s": "Fano factor, 60 s",
    "prompt_tokens_mean": "prompt mean",
    "prompt_tokens_p50": "prompt p50",
    "prompt_tokens_p90": "prompt p90",
    "prompt_tokens_p99": "prompt p99",
    "output_tokens_mean": "output mean",
    "output_tokens_p50": "output p50",
    "output_tokens_p90": "output p90",
    "output_tokens_p99": "output p99",
    "log_length_corr": "correlation",
    "prefix_block_hit_rate": "prefix hit rate",
}


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table() -> str:
    """Markdown: for each preset the real figure, a slash, and the drawn one."""
    columns = []
    for name, text in DRAWS.items():
        facts = dict(load_preset(name).facts)
        drawn = trace_statistics(load_trace(text))
        if name.endswith("week"):
            facts["mean_rps"] = None  # of the whole week; the draw is a tenth of a day
        cells = []
        for key in ROWS:
            own = drawn.get(key)
            cells.append("-" if own is None else f"{shown(facts.get(key))} / {shown(own)}")
        columns.append(cells)
    lines = ["| | " + " | ".join(DRAWS) + " |", "|---" * (len(DRAWS) + 1) + "|"]
    for i, label in enumerate(ROWS.values()):
        lines.append(f"| {label} | " + " | ".join(c[i] for c in columns) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
