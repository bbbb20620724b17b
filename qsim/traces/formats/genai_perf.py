"""The requests of a GenAI-Perf run (``profile_export.json``, written by Perf Analyzer).

Field names are those that GenAI-Perf's own ``LLMProfileDataParser`` reads
(perf_analyzer/genai-perf/genai_perf/profile_data_parser/llm_profile_data_parser.py): experiments
with ``requests``, each with a ``timestamp`` in nanoseconds, ``request_inputs``,
``response_timestamps`` and ``response_outputs``. The file has texts, not numbers of tokens:
those of responses are taken from ``usage`` where it was sent, prompts and other answers are
counted by a tokenizer that is named, or estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qsim.errors import TraceError
from qsim.traces.formats.options import TEXT_PARAMS, ReadOptions, chosen, text_counter
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import lookup, parse_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON of genai-perf profile (profile_export.json: experiments with requests)"
PARAMS = {"experiment": "which one of the file, from 1; needed if there are several", **TEXT_PARAMS}
_NAMES = ("timestamp", "request_inputs", "response_outputs")


def recognise(source: Source) -> bool:
    """Whether it has experiments, or is the statistics of a run."""
    head = source.head if is_json(source) else b""
    experiments = b'"experiments"' in head and b'"experiment"' in head
    statistics = b'"input_config"' in head and b'"input_sequence_length"' in head
    return experiments or statistics


def read(source: Source, options: ReadOptions) -> Trace:
    """Read one experiment; requests without an answer are skipped and counted."""
    try:
        report = parse_json(source.read_whole())
    except ValueError as error:
        raise TraceError(f"{source.path}: not one JSON object: {error}") from None
    experiments = report.get("experiments") if isinstance(report, dict) else None
    if not isinstance(experiments, list) or not experiments:
        raise TraceError(
            f"{source.path}: no experiments in it: these are the statistics of a run; its requests "
            "are in profile_export.json in the same folder"
        )
    told = [f"{lookup(e, 'experiment.mode')} {lookup(e, 'experiment.value')}" for e in experiments]
    number = chosen(source, options, "experiment", told, "experiments")
    rows = lookup(experiments[number], "requests")
    if not isinstance(rows, list):
        raise TraceError(f"{source.path}: no list of requests in the experiment")
    count, how = text_counter(source, options)
    requests = Collector(source, "genai-perf", _NAMES, ticks_per_s=10**9)
    answers = _Answers(count, "tokenizer" in options.params)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TraceError(f"{source.path}, request {i}: not an object")
        prompt, output = answers.prompt_and_output(row)
        requests.add(f"request {i}", row.get("timestamp"), prompt, output)
    requests.builder.notes += answers.notes(how)
    return requests.build()


class _Answers:
    """Lengths of prompts and answers, and how they were found."""

    def __init__(self, count: Callable[[str], int], exact: bool) -> None:
        self._count = count
        self._exact = exact
        self._texts = self._events = False

    def prompt_and_output(self, row: dict[str, Any]) -> tuple[int, int]:
        inputs = row.get("request_inputs")
        inputs = inputs if isinstance(inputs, dict) else {}
        events = list(_events(row.get("response_outputs")))
        usage = next((u for u in (lookup(e, "usage") for e in reversed(events)) if u), None)
        prompt, output = _whole(usage, "prompt_tokens"), _whole(usage, "completion_tokens")
        if output is None:
            output = self._output(events)
        if prompt is None:
            prompt = self._prompt(inputs)
        return prompt, output

    def _prompt(self, inputs: dict[str, Any]) -> int:
        ids = inputs.get("input_ids")
        if isinstance(ids, list):
            return len(ids)
        text = " ".join(_prompt_texts(inputs))
        self._texts = True
        return self._count(text)

    def _output(self, events: list[dict[str, Any]]) -> int:
        ids = [e["output_ids"] for e in events if "output_ids" in e]
        if ids:
            return sum(len(one) if isinstance(one, list) else 1 for one in ids)
        texts = [text for text in map(_answer_text, events) if text]
        if len(texts) > 1 and not self._exact:
            self._events = True
            return len(texts)
        self._texts = self._texts or bool(texts)
        return self._count("".join(texts))

    def notes(self, how: str) -> list[str]:
        """How the lengths were found."""
        found = [how] if self._texts else []
        if self._events:
            found.append("an event of a stream is taken for an output token")
        return found


def _whole(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if good else None


def _prompt_texts(inputs: dict[str, Any]) -> Iterator[str]:
    """The texts that make a prompt, in either form of the payload."""
    payload: Any = inputs.get("payload", inputs)
    if isinstance(payload, str):
        try:
            payload = parse_json(payload)
        except ValueError:
            payload = {}
    if not isinstance(payload, dict):
        return
    for key in ("prompt", "text_input"):
        value = payload.get(key)
        yield from (v for v in (value if isinstance(value, list) else [value])
                    if isinstance(v, str))  # fmt: skip
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _events(outputs: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of the responses, which may be events of a stream, several in one."""
    pieces: list[str] = []
    stream = False
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            continue
        response = output.get("response")
        if isinstance(response, str):
            begins = response.startswith("data:")
            stream = stream or begins
            pieces.append(f"\n{response}" if begins else response)
        else:
            yield output
    if not stream:
        for piece in pieces:
            yield from _parsed(piece)
        return
    for line in "".join(pieces).split("\n"):  # an event may be cut between two of them
        if line.startswith("data:"):
            yield from _parsed(line[5:])


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    try:
        value = parse_json(text)
    except ValueError:  # [DONE], or cut off
        return
    if isinstance(value, dict):
        yield value


def _answer_text(event: dict[str, Any]) -> str:
    if isinstance(event.get("text_output"), str):
        return str(event["text_output"])
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for path in ("delta.content", "delta.reasoning_content", "message.content", "text"):
        text = lookup(choice, path)
        if isinstance(text, str) and text:
            return text
    return ""
