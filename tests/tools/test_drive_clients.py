"""Clients that wait for answers, sent to a server that answers with words."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsim.catalog.models import load_model, write_dummy
from tests.calibrate.stub import script

pytest.importorskip("tokenizers")
drive = script("drive_clients")
check = script("check_clients")


class Words:
    """A server whose tokens are words; the longest common beginning of prompts counts as cached."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.running = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert head.startswith(b"POST /v1/completions")
            await self.answer(json.loads(await reader.readexactly(length)), writer)
        writer.close()

    async def answer(self, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        prompt = str(body["prompt"]).split()
        output = int(str(body["max_tokens"]))
        self.running += 1
        self.most = max(self.most, self.running)
        said = [f"t{2000 + i}" for i in range(output)]
        cached = max(map(len, filter(lambda s: s == prompt[: len(s)], self.seen)), default=0)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        def chunk(data: object) -> None:
            text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
            writer.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

        for word in said:
            chunk({"choices": [{"text": f" {word}"}]})
            await asyncio.sleep(0.0001)
        self.seen.append(prompt + said)
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        chunk({"choices": [], "usage": usage})
        chunk("[DONE]")
        self.running -= 1
        writer.write(b"0\r\n\r\n")


@pytest.fixture
def server() -> Iterator[tuple[Words, int]]:
    """The server and its port."""
    words, loop, ready = Words(), asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def run() -> None:
        listening = await asyncio.start_server(words.serve, "127.0.0.1", 0)
        ports.append(listening.sockets[0].getsockname()[1])
        ready.set()

    loop.create_task(run())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert ready.wait(30)
    yield words, ports[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, port: int, *more: str) -> int:
    write_dummy(load_model("llama-3.1-8b", dummy_weights=True), folder / "model", None)
    own = ["--port", str(port), "--tokenizer", str(folder / "model"), "--out", str(folder)]
    monkeypatch.setattr(sys, "argv", ["drive_clients.py", *own, "--prepare-s", "0.5", *more])
    return int(drive.main())


def test_closed_loops_keep_so_many_under_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[Words, int]
) -> None:
    words, port = server
    assert run(monkeypatch, tmp_path, port, "closed:4:12", "--processes", "2") == 0
    assert words.most == 4
    result = check.read(tmp_path / "max-concurrency-4.json.gz")
    assert len(result.trace) == 12
    assert result.concurrency == 4
    assert result.texts
    assert (result.ttft_s > 0).all()
    assert (result.e2el_s > result.ttft_s).all()
    assert sorted(result.trace.prompt_tokens + result.trace.output_tokens) == sorted(
        map(len, words.seen)
    )


def test_every_request_is_sent_by_however_many_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[Words, int]
) -> None:
    words, port = server
    assert run(monkeypatch, tmp_path, port, "closed:3:8", "--processes", "2") == 0
    assert len(words.seen) == 8


def test_a_next_turn_repeats_all_that_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[Words, int]
) -> None:
    _, port = server
    given = ("sessions:3:4:0.01", "--processes", "2", "--suffix=-b")
    assert run(monkeypatch, tmp_path, port, *given) == 0
    path = tmp_path / "sessions-3-b.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    assert len(rows) == 12
    by_turn = {(row["session"], row["turn"]): row for row in rows}
    for (session, turn), row in by_turn.items():
        before = by_turn.get((session, turn - 1), {"prompt": 0, "output": 0})
        cached = row["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == before["prompt"] + before["output"]
    result = check.read(path)
    assert result.texts
    assert result.trace.turns is not None


def test_a_server_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, 1, "closed:1:1") == 1
    assert "max-concurrency-1: ConnectionRefusedError" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, 1, "closed:00:1")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, 1, "closed:1:1", "--processes", "0")
