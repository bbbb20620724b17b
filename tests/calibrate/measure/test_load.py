"""The load client against the stub: every request is sent, answered, and timed."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.calibrate.measure.client import Endpoint, Job, _Connection
from qsim.calibrate.measure.load import LoadClient, LoadResult, RequestRow
from qsim.calibrate.measure.server import Server, free_port
from qsim.errors import CalibrationError
from tests.calibrate.stub import STUB, stub_environment


def serve(folder: Path, **environment: str) -> Server:
    (folder / "config.json").write_text("{}")
    env = stub_environment(STUB_START_S="0", **environment)
    server = Server([*STUB, str(folder)], env, folder / "server.log")
    server.start()
    server.wait_healthy(600.0)
    return server


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadClient]:
    server = serve(tmp_path_factory.mktemp("server"))
    client = LoadClient(server.port, model="m", vocab_size=1000)
    yield client
    client.close()
    server.stop()


def send(client: LoadClient, *streams: dict[str, Any], timeout_s: float = 600.0) -> LoadResult:
    return client.run({"label": "test", "streams": streams}, timeout_s, lambda: None)


def test_an_open_load_is_sent_at_its_times(client: LoadClient) -> None:
    at_s = [0.0, 0.0, 0.05, 0.2]
    asked_s = time.perf_counter()  # one clock for all processes; how late a busy machine is, varies
    result = send(client, {"at_s": at_s, "prompt": [5, 900, 30, 1], "output": [7, 1, 40, 2]})
    assert [r.request_id for r in result.requests] == [0, 1, 2, 3]
    assert [r.prompt_tokens for r in result.requests] == [5, 900, 30, 1]
    assert [r.output_tokens for r in result.requests] == [7, 1, 40, 2]
    for r, at in zip(result.requests, at_s, strict=True):
        assert r.sent_s >= asked_s + at - 2e-6  # microseconds are kept
        assert r.sent_s < r.first_token_s <= r.last_token_s
        assert 0 <= r.max_gap_s <= r.last_token_s - r.first_token_s + 2e-6
        if r.output_tokens == 1:  # several may arrive in one read
            assert r.first_token_s == r.last_token_s
    assert result.start_s == min(r.sent_s for r in result.requests)
    assert result.end_s == max(r.last_token_s for r in result.requests)


def test_a_closed_load_keeps_its_concurrency(client: LoadClient) -> None:
    result = send(
        client,
        {"concurrency": 2, "gap_s": 0.01, "delay_s": 0.1, "prompt": [20] * 9, "output": [5] * 9},
    )
    assert len(result.requests) == 9
    for r in result.requests:
        running = [o for o in result.requests if o.sent_s <= r.sent_s < o.last_token_s]
        assert 1 <= len(running) <= 2
    by_time = sorted(result.requests, key=lambda r: r.sent_s)
    freed = sorted(r.last_token_s for r in result.requests)
    for r, free in zip(by_time[2:], freed, strict=False):
        assert r.sent_s >= free + 0.0095  # the gap


def test_streams_run_at_the_same_time_and_end_by_time(client: LoadClient) -> None:
    result = send(
        client,
        {"at_s": [0.0], "prompt": [10], "output": [3000]},
        {"concurrency": 1, "delay_s": 0.05, "duration_s": 3.0, "prompt": [50] * 9000,
         "output": [1] * 9000},
    )  # fmt: skip
    long, *short = result.requests
    assert 1 <= len(short) < 9000  # of half a millisecond each at least
    assert short[0].sent_s < long.last_token_s
    # each but the last was answered before the end: otherwise none would have been sent after it
    assert all(r.last_token_s < result.start_s + 3.0 for r in short[:-1])


def test_loads_repeat_with_their_seed() -> None:
    import numpy as np

    endpoint = Endpoint(1, vocab_size=1000)
    bodies = [endpoint.request(Job(0, 40, 3), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert bodies[0] == bodies[1] != bodies[2]
    head, _, body = bodies[0].partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    data = json.loads(body)
    assert len(data["prompt"]) == 40
    assert all(10 <= i < 1000 for i in data["prompt"])
    assert data["max_tokens"] == 3
    assert data["ignore_eos"]
    assert data["temperature"] == 0


def test_a_model_of_any_name_is_asked_for() -> None:
    import numpy as np

    name = 'a "b" \\ c'
    body = Endpoint(1, model=name).request(Job(0, 4, 3), np.random.default_rng(0))
    assert json.loads(body.partition(b"\r\n\r\n")[2])["model"] == name


def test_a_refused_request_names_what_the_server_said(client: LoadClient) -> None:
    with pytest.raises(CalibrationError, match=r"1 of 2 requests .* 'test' failed") as caught:
        send(client, {"at_s": [0.0, 0.0], "prompt": [9, 9], "output": [2, 3001]})
    assert "request 1 (9 prompt tokens, 3001 output tokens): HTTP HTTP/1.1 400" in str(caught.value)
    assert "max_tokens is too large" in str(caught.value)
    # and the client still works
    assert len(send(client, {"at_s": [0.0], "prompt": [9], "output": [2]}).requests) == 1


def test_a_load_that_takes_too_long(tmp_path: Path) -> None:
    server = serve(tmp_path)
    client = LoadClient(server.port, model="m", vocab_size=1000)
    try:
        with pytest.raises(CalibrationError, match="'test' was not answered within 0 s"):
            send(client, {"at_s": [0.0], "prompt": [9], "output": [3000]}, timeout_s=0.3)
    finally:
        client.close()
        server.stop()


def test_a_server_that_crashes_under_load(tmp_path: Path) -> None:
    server = serve(tmp_path, STUB_MODE="crash-later")
    client = LoadClient(server.port, model="m", vocab_size=1000)
    try:
        with pytest.raises(CalibrationError, match=r"connection lost|ended with code 1: .*illegal"):
            client.run(
                {"streams": [{"at_s": [0.0], "prompt": [9], "output": [500]}]},
                300.0,
                server.check_alive,
            )
    finally:
        client.close()
        server.stop()


def test_nobody_listens() -> None:
    client = LoadClient(free_port(), model="m", vocab_size=1000)
    try:
        with pytest.raises(CalibrationError, match=r"Connect call failed|cannot connect"):
            send(client, {"at_s": [0.0], "prompt": [9], "output": [2]})
        client.process.kill()
        client.process.wait()
        with pytest.raises(CalibrationError, match="client has ended unexpectedly"):
            send(client, {"at_s": [0.0], "prompt": [9], "output": [2]})
    finally:
        client.close()


def answer(tokens: int, usage: int) -> bytes:
    """A streamed answer in chunks, as uvicorn writes it."""
    events = [f'{{"choices":[{{"text":"t{i}"}}]}}' for i in range(tokens)]
    events += [f'{{"choices":[],"usage":{{"completion_tokens":{usage}}}}}', "[DONE]"]
    body = b""
    for event in events:
        data = f"data: {event}\n\n".encode()
        body += f"{len(data):x}\r\n".encode() + data + b"\r\n"
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@given(tokens=st.integers(1, 30), cuts=st.lists(st.integers(1, 2500), max_size=20))
def test_tokens_are_counted_however_the_answer_is_cut(tokens: int, cuts: list[int]) -> None:
    job = Job(0, 1, tokens)
    data = answer(tokens, tokens)
    ends = [*sorted({c for c in cuts if c < len(data)}), len(data)]

    async def receive() -> None:
        connection = _Connection()
        connection.job, connection.done = job, asyncio.get_running_loop().create_future()
        begin = 0
        for end in ends:
            assert not connection.done.done()
            connection.data_received(data[begin:end])
            begin = end
        assert connection.done.done()

    asyncio.run(receive())
    assert (job.received_tokens, job.error) == (tokens, "")
    assert 0 < job.first_token_s <= job.last_token_s


def test_tokens_have_the_time_of_their_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four reads at 1, 2, 4 and 7 s; the first holds the head alone."""
    clock = itertools.chain([0.0, 0.0, 1.0, 2.0, 4.0, 7.0], itertools.repeat(9.0))
    monkeypatch.setattr("qsim.calibrate.measure.client.now", lambda: next(clock))
    job = Job(0, 1, 4)
    data = answer(4, 4)
    head = data.index(b"\r\n\r\n") + 4
    second, third = (data.index(f'"t{i}"'.encode()) - 30 for i in (1, 3))

    async def receive() -> None:
        connection = _Connection()
        connection.job, connection.done = job, asyncio.get_running_loop().create_future()
        next(clock)
        for begin, end in itertools.pairwise([0, head, second, third, len(data)]):
            connection.data_received(data[begin:end])

    asyncio.run(receive())
    assert (job.first_token_s, job.last_token_s, job.max_gap_s) == (2.0, 7.0, 3.0)
    assert job.received_tokens == 4


def test_an_answer_with_too_few_tokens_is_an_error() -> None:
    job = Job(0, 1, 5)

    async def receive() -> None:
        connection = _Connection()
        connection.job, connection.done = job, asyncio.get_running_loop().create_future()
        connection.data_received(answer(4, 4))

    asyncio.run(receive())
    assert job.error == "got 4 of 5 tokens"


def test_tpot_is_that_of_vllm_bench() -> None:
    rows = (
        RequestRow(0, 9, 5, 0.0, 1.0, 1.4, 0.1),
        RequestRow(1, 9, 1, 0.0, 1.0, 1.0, 0.0),
        RequestRow(2, 9, 3, 0.0, 1.0, 1.6, 0.1),
    )
    result = LoadResult(0.0, 2.0, rows)
    assert result.tpot_ms() == pytest.approx((100 + 300) / 2)
    assert result.duration_s == 2.0
