"""The log of a vLLM server that logs its requests (``--enable-log-requests``).

The lines are those of ``RequestLogger`` (vllm/entrypoints/logger.py, since 2026
vllm/entrypoints/serve/utils/request_logger.py) in all of its forms:

- ``Received request ID: prompt: '...', params: SamplingParams(...), prompt_token_ids: [...], ...``,
  as V0 and the earlier V1 write it (``sampling_params:`` in 2024);
- ``Received request ID: params: SamplingParams(...), lora_request: ...`` after
  ``Request ID details: prompt: '...', prompt_token_ids: [...], ...``, which is logged at the level
  DEBUG only, as newer ones do;
- ``Generated response ID (streaming ...): output: '...', output_token_ids: [...], ...`` and
  ``Generated response ID details: output_token_ids: [...]`` with ``--enable-log-outputs``.

What a log does not have, it cannot tell: how long prompts are without their ids or text, how long
answers were without ``--enable-log-outputs``, the year, and parts of a second (but for a time that
a container's runtime or a logging handler puts before the line).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from qsim.errors import TraceError
from qsim.traces.formats.options import TEXT_PARAMS, ReadOptions, text_counter, whole_param
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json, is_parquet
from qsim.traces.reading.source import Source
from qsim.traces.reading.times import parse_time_ns
from qsim.traces.trace import Trace

WHAT = "log of vllm serve --enable-log-requests (Received request ...: params: SamplingParams(...))"
PARAMS = {
    "prompt": "prompt tokens of requests of which the log does not tell them",
    "output": "output tokens of requests without a logged answer, or max: their max_tokens",
    "spread": "yes: requests of one second come at random moments of it (--seed), in their order",
    **TEXT_PARAMS,
}
_VLLM = re.compile(
    rb"(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \[?[\w./]+:\d+\]"
)
_OWN = re.compile(
    r"(?:DEBUG|INFO|WARNING) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))? \[?[\w./]+:\d+\]"
)
_CLOCK = re.compile(
    r"^[^\d\n]{0,40}(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)(?!\d)"
)
_RECEIVED = re.compile(r"Received request ([^\s:]+): ")
_DETAILS = re.compile(r"Request ([^\s:]+) details: ")
_GENERATED = re.compile(
    r"Generated response (\S+?)( \(streaming (?:delta|complete)\))?( details)?: "
)
_TEXT = re.compile(r"(?:prompt|output): ('[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\")")
_IDS = re.compile(r"(?:prompt|output)_token_ids: (?:\[([\d, ]*)\]|\(([\d, ]*)\)|None)")
_MAX = re.compile(r"\bmax_tokens=(\d{1,18})\b")
_MANY = re.compile(r"\(n=(\d{1,9})\b")
_ESCAPE = re.compile(r"\\(?:x..|u....|U........|.)")


def recognise(source: Source) -> bool:
    """Whether it has lines of vLLM's log."""
    if source.is_dir or is_json(source) or is_parquet(source):
        return False
    return _VLLM.search(source.head) is not None or b"Received request " in source.head


@dataclass
class _Answer:
    """What the log says about the answers to one request."""

    ids: int = 0
    texts: list[str] = field(default_factory=list)
    delta_ids: int = 0
    delta_texts: list[str] = field(default_factory=list)


@dataclass
class _Request:
    """A request as the log has it."""

    place: str
    id: str
    time_ns: int
    prompt: tuple[int | None, str | None]
    most: int | None


class _Clock:
    """The time of a line: one that stands before it, or vLLM's own, which has no year."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._own: bool | None = None
        self._year = 2024
        self._month = 0
        self.whole = True

    def ns(self, number: int, line: str) -> int:
        found = None
        if self._own is not True and (match := _CLOCK.match(line)):
            found = parse_time_ns(match.group(1).replace(",", "."))
            fraction = re.search(r"[.,](\d+)", match.group(1))
            self.whole = self.whole and (fraction is None or not fraction.group(1).strip("0"))
            self._own = False
        elif self._own is not False and (match := _OWN.search(line)):
            found = self._with_year(match)
            self._own = True
        if found is None:
            own = "INFO 11-30 07:01:10 [logger.py:49]"
            like = own if self._own is not False else "2024-05-10T12:00:00.5Z at its beginning"
            before = "" if self._own is None else ", as in the requests before it"
            raise TraceError(f"{self._source.path}, line {number}: no time like {like}{before}")
        return found

    def _with_year(self, match: re.Match[str]) -> int | None:
        month, day, hour, minute, second = (int(x) for x in match.groups()[:5])
        if self._month - month > 6:  # a new year
            self._year += 1
        self._month = month
        fraction = match.group(6) or ""
        self.whole = self.whole and not fraction.strip("0")
        try:
            moment = datetime(self._year, month, day, hour, minute, second)
        except ValueError:
            return None
        seconds = (moment - datetime(1970, 1, 1)).total_seconds()
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or 0)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of a log in order of their arrival.

    Requests of poolers (embeddings) are skipped and counted.
    """
    return _Reader(source, options).read()


class _Reader:
    """Collects what the log says of every request."""

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self._source = source
        self._seed = options.seed
        self._prompt = whole_param(source, options, "prompt")
        self._to_limit = options.params.get("output") == "max"
        self._output = None if self._to_limit else whole_param(source, options, "output")
        self._spread = options.params.get("spread", "no")
        if self._spread not in ("yes", "no"):
            raise TraceError(f"{source.path}: spread is {self._spread!r}; must be yes or no")
        self._count, self._how = text_counter(source, options)
        self._requests: list[_Request] = []
        self._details: dict[str, tuple[int | None, str | None]] = {}
        self._answers: dict[str, deque[_Answer]] = {}
        self._collector = Collector(
            source, "vllm-log", ("time", "prompt_token_ids", "output_token_ids"), ticks_per_s=10**9
        )
        self._collector.builder.columns["arrival"] = "time of the line (dates)"
        self._several = 0
        self._estimated = False
        self._clock = _Clock(source)

    def read(self) -> Trace:
        for number, data in self._source.lines():
            if b"Received request " in data:
                self._received(number, data.decode("utf-8", "replace"))
            elif b" details: prompt" in data:
                line = data.decode("utf-8", "replace")
                if match := _DETAILS.search(line):
                    self._details[match.group(1)] = _ids_and_text(line[match.end() :])
            elif b"Generated response " in data:
                self._generated(data.decode("utf-8", "replace"))
        if not self._requests:
            skipped = self._collector.builder.skipped
            raise TraceError(
                f"{self._source.path}: no line 'Received request ...: params: SamplingParams' in it"
                f"{' but those of poolers' if skipped else ''}; run vllm serve with "
                "--enable-log-requests"
            )
        return self._built()

    def _received(self, number: int, line: str) -> None:
        match = _RECEIVED.search(line)
        if match is None:
            return
        if "SamplingParams(" not in line and "BeamSearchParams(" not in line:
            self._collector.skip("no generation (pooling)")
            return
        known = self._details.pop(match.group(1), None) or _ids_and_text(line[match.end() :])
        params = line[line.rindex("Params(") :]
        most = _MAX.search(params)
        many = _MANY.search(params)
        self._several += many is not None and int(many.group(1)) > 1
        self._requests.append(
            _Request(
                f"line {number}", match.group(1), self._clock.ns(number, line), known,
                int(most.group(1)) if most else None,
            )
        )  # fmt: skip

    def _generated(self, line: str) -> None:
        match = _GENERATED.search(line)
        if match is None:
            return
        answers = self._answers.setdefault(match.group(1), deque())
        ids, text = _ids_and_text(line[match.end() :])
        delta = (match.group(2) or "").endswith("delta)")
        # what follows about the same answer: its text after its ids, or the next part of a stream
        goes_on = answers and (
            delta or match.group(2) or (not match.group(3) and answers[-1].ids and ids is None)
        )
        if not goes_on:
            answers.append(_Answer())
        answer = answers[-1]
        if delta:
            answer.delta_ids += ids or 0
            answer.delta_texts.append(text or "")
        else:
            answer.ids += ids or 0
            if text:
                answer.texts.append(text)

    def _built(self) -> Trace:
        self._check_cut()
        times = [request.time_ns for request in self._requests]
        if self._spread == "yes" and self._clock.whole:
            times = _spread(times, self._seed)
        notes = self._collector.builder.notes
        if self._clock.whole:
            notes.append(
                "requests of one second came at random moments of it (--seed), as :spread=yes asks"
                if self._spread == "yes"
                else "times are whole seconds, so requests of one second arrive together; "
                ":spread=yes lets them come at random moments of it"
            )
        for request, time_ns in zip(self._requests, times, strict=True):
            prompt, output = self._prompt_tokens(request), self._output_tokens(request)
            self._collector.add(request.place, time_ns, prompt, output)
        if self._estimated:
            notes.append(self._how)
        if self._to_limit:
            notes.append("answers that were not logged are as long as their max_tokens")
        if self._several:
            notes.append(f"{self._several} requests ask for several answers (n > 1); one is taken")
        return self._collector.build()

    def _check_cut(self) -> None:
        """``--max-log-len`` cuts ids and characters at one number."""
        for request in self._requests:
            ids, text = request.prompt
            if ids and text and ids == len(text) and ids > 8 and self._prompt is None:
                raise TraceError(
                    f"{self._source.path}, {request.place}: the prompt has {ids} characters and "
                    "as many tokens, so --max-log-len has cut it; log without it, or say how long "
                    "prompts are with :prompt=N after the path"
                )
        lengths = [len(t) for _, t in (r.prompt for r in self._requests) if t]
        most = max(lengths, default=0)
        if self._prompt is None and most > 8 and lengths.count(most) > max(3, len(lengths) // 10):
            self._collector.builder.notes.append(
                f"{lengths.count(most)} prompts have {most} characters each, more than any other: "
                "perhaps --max-log-len has cut them"
            )

    def _prompt_tokens(self, request: _Request) -> int:
        ids, text = request.prompt
        if ids:
            return ids
        if text:
            self._estimated = True
            return self._count(text)
        if self._prompt is None:
            raise TraceError(
                f"{self._source.path}, {request.place}: the log does not say how long the prompt "
                "is; log with VLLM_LOGGING_LEVEL=DEBUG, or say :prompt=N after the path"
            )
        return self._prompt

    def _output_tokens(self, request: _Request) -> int:
        answers = self._answers.get(request.id)
        if not answers:  # a completion of several prompts is answered under one id
            answers = self._answers.get(re.sub(r"-\d+$", "", request.id))
        answer = answers.popleft() if answers else None
        if answer is not None and (answer.ids or answer.delta_ids):
            return answer.ids or answer.delta_ids
        if answer is not None and (answer.texts or any(answer.delta_texts)):
            self._estimated = True
            return self._count("".join(answer.texts or answer.delta_texts))
        if self._to_limit and request.most is not None:
            return request.most
        if self._output is None:
            limit = " or :output=max (its max_tokens)" if request.most is not None else ""
            raise TraceError(
                f"{self._source.path}, {request.place}: the log does not say how long the answer "
                f"was; log with --enable-log-outputs, or say :output=N{limit} after the path"
            )
        return self._output


def _ids_and_text(rest: str) -> tuple[int | None, str | None]:
    """The number of token ids, and the text, of a prompt or answer; None for what is not there."""
    text = _TEXT.match(rest)
    shown = None
    if text is not None:
        shown = _ESCAPE.sub("x", text.group(1)[1:-1])  # of the same length
        rest = rest[text.end() :]
    ids = _IDS.search(rest)
    listed = (ids.group(1) or ids.group(2) or "") if ids else ""
    return (listed.count(",") + (not listed.rstrip().endswith(",")) if listed else None), shown


def _spread(times: list[int], seed: int) -> list[int]:
    """Random moments within each second, in the order of the log."""
    rng = np.random.default_rng(seed)
    moments = np.array(times, np.int64)
    order = np.argsort(moments, kind="stable")
    drawn = np.sort(moments + rng.integers(0, 10**9, len(times)))
    moments[order] = drawn
    return [int(t) for t in moments]
