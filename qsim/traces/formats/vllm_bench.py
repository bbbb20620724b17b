"""The result file of ``vllm bench serve --save-result --save-detailed`` (JSON), of any version."""

from __future__ import annotations

from qsim.traces.formats.bench_result import PARAMS, read_runs
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["PARAMS", "WHAT", "read", "recognise"]

WHAT = "JSON of vllm bench serve --save-detailed (input_lens, output_lens and start_times if new)"
_MARKS = (b'"input_lens"', b'"total_input_tokens"', b'"request_throughput"', b'"endpoint_type"')


def recognise(source: Source) -> bool:
    """Whether it is a JSON object with the keys of a vLLM benchmark."""
    if source.is_dir:
        return False
    head = source.head
    return head.lstrip()[:1] in (b"{", b"[") and any(m in head for m in _MARKS)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of a run, in order of their start; failed ones are skipped and counted."""
    advice = (
        "run vllm bench serve with --save-result --save-detailed, which writes one value a request"
    )
    return read_runs(source, options, "vllm-bench", advice)
