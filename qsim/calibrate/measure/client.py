"""The load client: sends token-id prompts to a vLLM server and times the streamed answer.

It runs in a process of its own (``python -m qsim.calibrate.measure.client --port N``), so that
nothing else delays its timestamps, and speaks HTTP directly on asyncio sockets, because it shares
the host with the server. Each line on stdin is a load (see ``run_load``), each line on stdout its
result. All times are ``time.perf_counter`` in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import resource
import sys
from dataclasses import dataclass, field
from time import perf_counter as now
from typing import Any, cast

import numpy as np

_TOKEN = re.compile(rb'"choices":\s*\[\s*\{')
_KEPT = 1024  # bytes kept, so that what is split over several reads is seen
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_DONE = b"data: [DONE]"
_END = b"\r\n0\r\n\r\n"  # the last chunk of a chunked body
_REUSE_S = 2.0  # uvicorn closes a connection after 5 s without a request


@dataclass
class Job:
    """One request and, once it was sent, its times."""

    request_id: int
    prompt_tokens: int
    output_tokens: int
    body: bytes = b""
    sent_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    max_gap_s: float = 0.0
    received_tokens: int = 0
    error: str = ""

    def result(self) -> list[Any]:
        """The request as a JSON row; times to the microsecond."""
        times = (self.sent_s, self.first_token_s, self.last_token_s, self.max_gap_s)
        return [
            self.request_id,
            self.prompt_tokens,
            self.output_tokens,
            *(round(t, 6) for t in times),
            self.received_tokens,
            self.error,
        ]


@dataclass
class Endpoint:
    """Where the server listens and what it calls the model."""

    port: int
    host: str = "127.0.0.1"
    model: str = "m"
    vocab_size: int = 32000
    idle: list[_Connection] = field(default_factory=list)

    async def connect(self) -> _Connection:
        """A connection that the server has not closed."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable():
                return connection
            connection.close()
        return await self.open()

    async def open(self) -> _Connection:
        """A new connection."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(), self.host, self.port)
        return connection

    async def prepare(self, count: int) -> None:
        """Have ``count`` connections open before the clock starts."""
        self.idle = [c for c in self.idle if c.usable()]
        missing = max(0, count - len(self.idle))
        for begin in range(0, missing, 64):  # the server's backlog is finite
            many = (self.open() for _ in range(begin, min(begin + 64, missing)))
            self.idle += await asyncio.gather(*many)

    def request(self, job: Job, rng: np.random.Generator) -> bytes:
        """The HTTP request of a job, with random token ids as the prompt."""
        ids = rng.integers(10, self.vocab_size, size=job.prompt_tokens).tolist()
        body = (
            f'{{"model":{json.dumps(self.model)},"prompt":[{",".join(map(str, ids))}],'
            f'"max_tokens":{job.output_tokens},"ignore_eos":true,"temperature":0,"stream":true,'
            '"stream_options":{"include_usage":true}}'
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; serves one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.open = True
        self.used_s = now()
        self.job: Job | None = None
        self.done: asyncio.Future[None] | None = None
        self.head = b""
        self.in_body = False
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    def usable(self) -> bool:
        return self.open and now() - self.used_s < _REUSE_S

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def serve(self, job: Job) -> None:
        """Send a job and wait until its answer has ended."""
        assert self.transport is not None
        self.job, self.head, self.in_body, self.tail = job, b"", False, b""
        self.done = asyncio.get_running_loop().create_future()
        job.sent_s = now()
        self.transport.write(job.body)
        await self.done
        self.used_s = now()

    def _fail(self, error: str) -> None:
        if self.job is not None and self.done is not None and not self.done.done():
            self.job.error = error
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        time_s = now()
        job = self.job
        if job is None:
            return
        if not self.in_body:
            self.head += data
            head, separator, data = self.head.partition(b"\r\n\r\n")
            if not separator:
                return
            self.in_body = True
            status = head.split(b" ", 2)[1] if head.count(b" ") >= 2 else head
            if status != b"200":
                text = (head.splitlines()[0] + b": " + data[:400]).decode(errors="replace")
                self.close()
                self._fail(f"HTTP {text}")
                return
            if not data:
                return
        data = self.tail + data
        last = 0
        for found in _TOKEN.finditer(data):
            last = found.end()
            if job.received_tokens == 0:
                job.first_token_s = job.last_token_s = time_s
            job.received_tokens += 1
        if last:
            job.max_gap_s = max(job.max_gap_s, time_s - job.last_token_s)
            job.last_token_s = time_s
        if data.endswith(_END) and _DONE in data[last:]:
            usage = _USAGE.search(data, last)
            if usage is not None:  # chunks may carry several tokens
                job.received_tokens = int(usage[1])
            if job.received_tokens != job.output_tokens:
                job.error = f"got {job.received_tokens} of {job.output_tokens} tokens"
            if self.done is not None and not self.done.done():
                self.done.set_result(None)
            return
        # behind the last token come the usage and the end, possibly in several reads
        self.tail = data[max(last, len(data) - _KEPT) :]


async def _send(endpoint: Endpoint, job: Job) -> None:
    for attempt in (1, 2):
        try:
            connection = await endpoint.connect()
        except OSError as e:
            job.sent_s, job.error = now(), f"cannot connect: {e}"
            return
        await connection.serve(job)
        if job.error.startswith("connection lost") and job.received_tokens == 0 and attempt == 1:
            job.error = ""  # a reused connection that the server was just closing
            continue
        if connection.open:
            endpoint.idle.append(connection)
        return


async def _open_loop(endpoint: Endpoint, jobs: list[Job], at_s: list[float], start: float) -> None:
    """Send each job at its time, whatever the server does."""
    tasks = []
    for job, at in zip(jobs, at_s, strict=True):
        delay = start + at - now()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(_send(endpoint, job)))
    await asyncio.gather(*tasks)


async def _closed_loop(
    endpoint: Endpoint, jobs: list[Job], stream: dict[str, Any], start: float
) -> None:
    """``concurrency`` senders; each waits for its answer, then ``gap_s``, then takes the next."""
    queue = iter(jobs)
    stop = start + stream["duration_s"] if stream.get("duration_s") else float("inf")
    gap_s = float(stream.get("gap_s", 0.0))
    delay = start + float(stream.get("delay_s", 0.0)) - now()
    if delay > 0:
        await asyncio.sleep(delay)

    async def sender() -> None:
        for job in queue:
            if now() >= stop:
                return
            await _send(endpoint, job)
            if job.error:
                return
            if gap_s:
                await asyncio.sleep(gap_s)

    await asyncio.gather(*(sender() for _ in range(int(stream.get("concurrency", 1)))))


async def run_load(endpoint: Endpoint, load: dict[str, Any]) -> dict[str, Any]:
    """Send one load and wait for all answers.

    A load has a ``seed``, and ``streams`` that run at the same time, each with ``prompt`` and
    ``output`` (lists of lengths in tokens) and either ``at_s`` (open loop: seconds after the start)
    or ``concurrency`` (closed loop), with ``gap_s``, ``duration_s`` and ``delay_s`` optional. What
    comes back has ``start_s``, ``end_s``, and ``requests``: the sent ones as rows of
    ``Job.result``.
    """
    rng = np.random.default_rng(load.get("seed", 0))
    streams: list[tuple[list[Job], dict[str, Any]]] = []
    number = 0
    for stream in load["streams"]:
        jobs = []
        for prompt, output in zip(stream["prompt"], stream["output"], strict=True):
            job = Job(number, int(prompt), int(output))
            job.body = endpoint.request(job, rng)
            jobs.append(job)
            number += 1
        streams.append((jobs, stream))
    at_once = sum(
        min(len(jobs), int(s["concurrency"]) if "concurrency" in s else 1024) for jobs, s in streams
    )
    await endpoint.prepare(min(at_once, 768))
    gc.collect()
    gc.disable()
    start = now()
    loops = [
        _open_loop(endpoint, jobs, s["at_s"], start)
        if "at_s" in s
        else _closed_loop(endpoint, jobs, s, start)
        for jobs, s in streams
    ]
    await asyncio.gather(*loops)
    gc.enable()
    done = [j for jobs, _ in streams for j in jobs if j.sent_s > 0]
    return {
        "start_s": round(min((j.sent_s for j in done), default=start), 6),
        "end_s": round(max((j.last_token_s for j in done), default=now()), 6),
        "requests": [j.result() for j in done],
    }


def main(argv: list[str] | None = None) -> None:
    """Read loads from stdin, one JSON object a line; write results to stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="m")
    parser.add_argument("--vocab-size", type=int, default=32000)
    args = parser.parse_args(argv)
    endpoint = Endpoint(args.port, args.host, args.model, args.vocab_size)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < 4096 else soft, hard))
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    for line in sys.stdin:
        try:
            result = loop.run_until_complete(run_load(endpoint, json.loads(line)))
        except Exception as e:
            result = {"error": f"{type(e).__name__}: {e}"}
        sys.stdout.write(json.dumps(result, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


if __name__ == "__main__":
    main()
