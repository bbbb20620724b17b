"""A server's life: start, health, what it says about itself, how it fails, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qsim.calibrate.measure.server import Server, crash_reason, free_port, serve_command
from qsim.errors import CalibrationError
from tests.calibrate.stub import MARK, STUB, marked, none_left, stub_environment

Start = Callable[..., Server]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return str(tmp_path / "model")


@pytest.fixture
def started(tmp_path: Path, model: str) -> Iterator[Start]:
    """Starts servers, and ends them after the test."""
    servers = []

    def start(port: int = 0, **environment: str) -> Server:
        mark = f"{tmp_path.name}-{len(servers)}"
        env = stub_environment(**{MARK: mark}, **environment)
        server = Server([*STUB, model], env, tmp_path / "server.log", port)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def test_start_health_facts_stop(started: Start, tmp_path: Path) -> None:
    server = started()
    waits: list[float] = []
    took_s = server.wait_healthy(120.0, waits.append)
    assert waits
    assert took_s > 0.1  # the stub's own start
    facts = server.facts()
    assert (facts.num_gpu_blocks, facts.block_size) == (20001, 16)
    assert facts.weights_gib == 14.96
    assert facts.kv_cache_gib == 39.06
    assert facts.memory_gib == {
        "consumed": 15.2, "peak_activation": 1.85, "cuda_graph": 0.51, "cuda_graph_estimate": 0.62,
    }  # fmt: skip
    assert facts.max_num_batched_tokens == 8192
    assert facts.graph_sizes == (1, 2, 4)
    assert facts.vllm_version == "0.24.0"
    assert facts.start_s == took_s
    server.check_alive()
    assert marked(f"{tmp_path.name}-0")
    server.stop()
    assert marked(f"{tmp_path.name}-0") == []
    server.stop()  # again does no harm
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 1.0)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("oom", ("out of GPU memory", "--tensor-parallel-size", "Tried to allocate 448.00 MiB")),
        ("busy-gpu", ("another process holds GPU memory", "nvidia-smi")),
        ("no-gpu", ("no usable GPU", "No CUDA GPUs are available")),
        ("no-kv", ("too little GPU memory is left for the KV cache", "--max-model-len")),
        ("crash", ("quantization method humbug is not supported",)),
    ],
)
def test_a_server_that_does_not_come_up_says_why(
    started: Start, mode: str, words: tuple[str, ...]
) -> None:
    server = started(STUB_MODE=mode, STUB_START_S="0")
    with pytest.raises(CalibrationError, match="the server ended with code 1") as caught:
        server.wait_healthy(600.0)
    for word in (*words, str(server.log)):
        assert word in str(caught.value)


def test_a_port_that_is_in_use(started: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = started(port=other.getsockname()[1])
        # the other one accepts connections, but is not our server
        with pytest.raises(CalibrationError, match="the port is in use"):
            server.wait_healthy(600.0)


def test_a_server_that_is_too_slow(started: Start) -> None:
    server = started(STUB_START_S="60")
    with pytest.raises(CalibrationError, match=r"not healthy after .* s: .*--start-timeout"):
        server.wait_healthy(0.5)


def test_a_crash_after_the_start(started: Start) -> None:
    server = started()
    server.wait_healthy(600.0)
    assert server.process is not None
    children = marked_pids(server.process.pid)
    for pid in children:
        os.kill(pid, signal.SIGSEGV)
    assert server.process.wait(timeout=600) == 139
    with pytest.raises(CalibrationError, match="ended with code 139"):
        server.check_alive()


def marked_pids(parent: int) -> list[int]:
    """The children of a process."""
    return [
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if (p / "stat").exists()
        and (p / "stat").read_text().rpartition(")")[2].split()[1] == str(parent)
    ]


def test_a_server_that_ignores_sigterm_is_killed(started: Start, tmp_path: Path) -> None:
    server = started(STUB_MODE="stubborn")
    server.wait_healthy(600.0)
    server.stop(grace_s=0.3)
    assert marked(f"{tmp_path.name}-0") == []


def test_the_server_ends_with_a_parent_that_is_killed(tmp_path: Path, model: str) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from qsim.calibrate.measure.server import Server\n"
        f"s = Server({[*STUB, model]!r}, os.environ, Path({str(tmp_path / 'log')!r}))\n"
        "s.start(); s.wait_healthy(600.0); print('up', flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=stub_environment(**{MARK: tmp_path.name}), start_new_session=True,
    )  # fmt: skip
    assert parent.stdout
    assert parent.stdin
    assert parent.stdout.readline() == "up\n"
    assert len(marked(tmp_path.name)) >= 3  # the parent, the guard, the server
    parent.kill()
    parent.communicate()
    assert none_left(tmp_path.name) == []


def test_facts_without_the_number_of_blocks(tmp_path: Path) -> None:
    server = Server(["true"], {}, tmp_path / "log", port=free_port())
    with pytest.raises(CalibrationError, match="does not tell its number of KV blocks"):
        server.facts()
    server.log.write_text("GPU KV cache size: 320,016 tokens\n")
    assert server.facts().num_gpu_blocks == 20001


def test_crash_reasons_name_the_most_telling_line() -> None:
    log = (
        "INFO loading\nValueError: first\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        "RuntimeError: Engine core initialization failed\n"
    )
    assert crash_reason(log).startswith("out of GPU memory")
    assert "Tried to allocate 2 GiB" in crash_reason(log)
    assert "Engine core" not in crash_reason(log)
    assert crash_reason("INFO x\nKeyError: 'y'\nINFO bye\n") == "the log says: KeyError: 'y'"
    assert crash_reason("one\ntwo\n") == "the log says: two"
    assert crash_reason("") == "its log is empty"
    assert len(crash_reason("ValueError: " + "x" * 10_000)) < 450


def test_serve_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve_command("docker run 'my image' serve") == ["docker", "run", "my image", "serve"]
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CalibrationError, match=r"vLLM is not installed here.*--serve-command"):
        serve_command(None)


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    server = Server(["/no/such/vllm", "serve"], os.environ, tmp_path / "log")
    server.start()
    with pytest.raises(CalibrationError, match=r"code 127: .*cannot start '/no/such/vllm'"):
        server.wait_healthy(600.0)
    server.stop()
