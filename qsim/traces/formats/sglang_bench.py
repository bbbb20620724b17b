"""The result file of ``python -m sglang.bench_serving --output-details`` (JSON lines)."""

from __future__ import annotations

from qsim.traces.formats.bench_result import PARAMS, read_runs
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.kind import is_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["PARAMS", "WHAT", "read", "recognise"]

WHAT = "JSON lines of sglang.bench_serving --output-details (input_lens, output_lens)"


def recognise(source: Source) -> bool:
    """Whether the first line has the keys of SGLang's benchmark, which vLLM's has not."""
    if not is_json(source):
        return False
    head = source.head
    return b'"dataset_name"' in head and b'"backend"' in head and b'"model_id"' not in head


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of a run; failed ones are skipped and counted.

    The file has no times of sending: they are drawn from the request rate that it states.
    """
    advice = "run sglang.bench_serving with --output-details, which writes one value a request"
    return read_runs(source, options, "sglang-bench", advice)
