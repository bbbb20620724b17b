"""Drive a vLLM server with clients that wait for answers, and keep what they saw.

    python tools/drive_clients.py --port 8000 --tokenizer DIR closed:128:1280 sessions:48:6:1.0

``closed:N:REQUESTS`` is a closed loop of N clients, ``sessions:N:TURNS:THINK_S`` are N sessions
whose next prompt is all that was said before and 30 to 400 tokens more, sent after a think time
(exponential, THINK_S on average). Prompts are texts of random tokens. Files are written to
``--out``, as ``tools/check_clients.py`` reads them: a closed loop in the form of ``vllm bench
serve --save-detailed`` (a request's gaps between tokens as their sum), a session's turns as a list.

``vllm bench serve`` is one Python process that parses every token as it comes; on a busy server its
own queue becomes part of the latencies. Here clients are spread over ``--processes``, and only the
first and the last token of an answer are looked for while others are under way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

_TOKEN = re.compile(rb'"choices":\s*\[\s*\{')
_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """``closed`` with ``count`` requests, or ``sessions`` of ``count`` turns."""

    kind: str
    clients: int
    count: int
    think_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Load:
        """Raises ValueError for anything else."""
        found = re.fullmatch(r"closed:(\d+):(\d+)|sessions:(\d+):(\d+):(\d+(?:\.\d+)?)", text)
        if found is None or 0 in map(int, filter(None, found.groups()[:4])):
            raise ValueError(f"{text!r} is neither closed:N:REQUESTS nor sessions:N:TURNS:THINK_S")
        if found[1]:
            return cls("closed", int(found[1]), int(found[2]))
        return cls("sessions", int(found[3]), int(found[4]), float(found[5]))

    @property
    def name(self) -> str:
        return f"{'max-concurrency' if self.kind == 'closed' else 'sessions'}-{self.clients}"


class Answer(asyncio.Protocol):
    """One connection: sends a request and collects its streamed answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError(f"the server closed: {exc}"))

    async def ask(self, request: bytes) -> tuple[str, dict[str, Any]]:
        """The answer's text and usage; its times are in ``sent_s``, ``first_s`` and ``last_s``."""
        assert self.transport is not None
        self.received: list[bytes] = []
        self.first_s = self.last_s = 0.0
        self.done = asyncio.get_running_loop().create_future()
        self.sent_s = time.monotonic()
        self.transport.write(request)
        await self.done
        events = re.findall(rb"^data: (\{.*\})\r?$", b"".join(self.received), re.MULTILINE)
        chunks = [json.loads(event) for event in events]
        text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
        return text, next(c["usage"] for c in reversed(chunks) if c.get("usage"))

    def data_received(self, data: bytes) -> None:
        if not self.received and not data.startswith(b"HTTP/1.1 200"):
            text = data[:400].decode(errors="replace").replace("\r\n", " ")
            self.connection_lost(ConnectionError(text))
            return
        self.received.append(data)
        if _TOKEN.search(data):
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
        ended = data.endswith(_END) or (
            len(data) < len(_END) and b"".join(self.received[-3:]).endswith(_END)
        )
        if ended and self.done is not None and not self.done.done():
            self.done.set_result(None)


class Client:
    """Sends texts to one server; a process has one."""

    def __init__(self, args: argparse.Namespace, seed: list[int]) -> None:
        from tokenizers import Tokenizer

        self.args = args
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
        self.rng = np.random.default_rng(seed)
        self.rows: list[dict[str, Any]] = []

    def words(self, tokens: int) -> str:
        """A text of so many random tokens."""
        ids = self.rng.integers(1000, self.tokenizer.get_vocab_size(), tokens)
        return cast(str, self.tokenizer.decode(ids.tolist()))

    def request(self, prompt: str, output: int) -> bytes:
        body = {
            "model": self.args.model,
            "prompt": prompt,
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.args.host}:{self.args.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data

    async def open(self) -> Answer:
        loop = asyncio.get_running_loop()
        _, answer = await loop.create_connection(Answer, self.args.host, self.args.port)
        return answer

    def keep(self, answer: Answer, usage: dict[str, Any], **more: Any) -> None:
        self.rows.append(
            {
                "t": answer.sent_s,
                "ttft_s": answer.first_s - answer.sent_s,
                "e2e_s": answer.last_s - answer.sent_s,
                "prompt": usage["prompt_tokens"],
                "output": usage["completion_tokens"],
                "usage": usage,
                **more,
            }
        )

    async def closed(self, clients: int, requests: int, begin_s: float) -> None:
        """``requests`` by ``clients`` in turn, as ``vllm bench serve --dataset-name random``."""
        lengths = [
            (int(self.rng.integers(400, 1201)), int(self.rng.integers(100, 301)))
            for _ in range(requests)
        ]
        queue = iter([self.request(self.words(p), o) for p, o in lengths])
        answers = [await self.open() for _ in range(clients)]
        await asyncio.sleep(begin_s - time.monotonic())

        async def run(answer: Answer) -> None:
            for request in queue:
                _, usage = await answer.ask(request)
                self.keep(answer, usage)

        await asyncio.gather(*(run(a) for a in answers))

    async def sessions(
        self, numbers: Sequence[int], turns: int, think_s: float, begin_s: float
    ) -> None:
        """Sessions that begin within the first two think times."""
        plans = []
        for number in numbers:
            new = [int(self.rng.integers(400, 1201))]
            new += self.rng.integers(30, 401, turns - 1).tolist()
            texts = [self.words(n) for n in new]
            outputs = self.rng.integers(60, 241, turns).tolist()
            waits = self.rng.exponential(think_s, turns).tolist()
            plans.append((number, texts, outputs, waits, self.rng.uniform(0, 2 * think_s)))
        await asyncio.sleep(begin_s - time.monotonic())

        async def run(
            number: int, texts: list[str], outputs: list[int], waits: list[float], after_s: float
        ) -> None:
            await asyncio.sleep(after_s)
            said = ""
            for turn, (text, output, wait_s) in enumerate(zip(texts, outputs, waits, strict=True)):
                said = f"{said} {text}".strip()
                answer = await self.open()
                reply, usage = await answer.ask(self.request(said, output))
                assert answer.transport is not None
                answer.transport.close()
                said = f"{said} {reply.strip()}"
                self.keep(answer, usage, session=number, turn=turn, think_s=wait_s, text=True)
                await asyncio.sleep(wait_s)

        await asyncio.gather(*(run(*plan) for plan in plans))


def work(
    args: argparse.Namespace, load: Load, place: int, begin_s: float, results: Connection
) -> None:
    """One process's share of a load."""
    client = Client(args, [args.seed, place])
    share = range(place, load.clients, args.processes)
    if load.kind == "closed":
        before = sum(len(range(p, load.clients, args.processes)) for p in range(place))
        ends = [load.count * n // load.clients for n in (before, before + len(share))]
        requests = ends[1] - ends[0]
        run = client.closed(len(share), requests, begin_s)
    else:
        run = client.sessions(share, load.count, load.think_s, begin_s)
    gc.disable()
    try:
        asyncio.run(run)
    except Exception as error:  # the parent says it
        results.send((f"{type(error).__name__}: {error}", []))
        return
    results.send(("", client.rows))


def send(args: argparse.Namespace, load: Load) -> list[dict[str, Any]]:
    """All processes' rows, in order of sending; the first is sent at 0.

    Raises
    ------
    RuntimeError
        If one of them failed.
    """
    begin_s = time.monotonic() + args.prepare_s
    workers = []
    for place in range(min(args.processes, load.clients)):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=work, args=(args, load, place, begin_s, theirs))
        process.start()
        theirs.close()
        workers.append((process, ours))
    rows: list[dict[str, Any]] = []
    errors = []
    for process, ours in workers:
        try:
            error, found = ours.recv()
        except EOFError:
            error, found = "a process of clients ended", []
        process.join()
        rows += found
        errors += [error] * bool(error)
    if errors:
        raise RuntimeError(f"{load.name}: {errors[0]}")
    rows.sort(key=lambda row: row["t"])
    first_s = rows[0]["t"]
    for row in rows:
        row["t"] -= first_s
        for key in ("t", "ttft_s", "e2e_s", "think_s"):
            if key in row:
                row[key] = round(row[key], 6)
    return rows


def benchmark(load: Load, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A closed loop's rows in the form of ``vllm bench serve --save-detailed``."""
    duration_s = max(row["t"] + row["e2e_s"] for row in rows)
    return {
        "backend": "openai",
        "max_concurrency": load.clients,
        "request_rate": "inf",
        "num_prompts": len(rows),
        "duration": duration_s,
        "completed": len(rows),
        "failed": 0,
        "total_input_tokens": sum(row["prompt"] for row in rows),
        "total_output_tokens": sum(row["output"] for row in rows),
        "input_lens": [row["prompt"] for row in rows],
        "output_lens": [row["output"] for row in rows],
        "start_times": [row["t"] for row in rows],
        "ttfts": [row["ttft_s"] for row in rows],
        "itls": [[round(row["e2e_s"] - row["ttft_s"], 6)] for row in rows],
        "errors": [""] * len(rows),
    }


def main() -> int:
    """Send the loads, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loads", nargs="+", metavar="closed:N:REQUESTS|sessions:N:TURNS:THINK_S")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="m", help="as the server names it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--suffix", default="", help="behind a file's name: -again")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--prepare-s", type=float, default=3.0, help="until the first is sent")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f"--processes is {args.processes}; must be >= 1")
    try:
        loads = [Load.parse(text) for text in args.loads]
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    for load in loads:
        try:
            rows = send(args, load)
        except (RuntimeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        what = rows if load.kind == "sessions" else benchmark(load, rows)
        path = args.out / f"{load.name}{args.suffix}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(what, separators=(",", ":")).encode(), mtime=0))
        print(f"{path}: {len(rows)} requests, {rows[-1]['t']:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
