"""A vLLM server as a child process: start, wait until it is healthy, find out why not, stop."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qsim.errors import CalibrationError
from qsim.prometheus import samples

#: (what the log says, what it means), the most telling first
_REASONS: tuple[tuple[str, str], ...] = (
    (r"address already in use", "the port is in use: give another one or let qsim choose"),
    (
        r"Free memory on device .{0,200}?less than desired",
        "another process holds GPU memory: see nvidia-smi, and free the GPU",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache memory",
        "too little GPU memory is left for the KV cache: use more GPUs "
        "(--tensor-parallel-size) or a smaller --max-model-len",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|not enough GPU memory",
        "out of GPU memory: use more GPUs (--tensor-parallel-size) or another method",
    ),
    (
        r"No CUDA GPUs are available|Failed to infer device type|NVIDIA driver on your system|"
        r"no NVIDIA driver|CUDA driver initialization failed|cuda runtime error \(?100",
        "no usable GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    ),
    (r"unrecognized arguments: .*", "this version of vLLM does not know an argument"),
    (r"No module named '?[\w.]+'?", "a Python package is missing in the server's environment"),
)

#: how long processes that were killed may take to be gone, s
_KILLED_S = 30.0
_MEMORY: tuple[tuple[str, str], ...] = (
    ("consumed", r"Actual usage is ([\d.]+) GiB for consumed memory"),
    ("peak_activation", r"([\d.]+) GiB for peak activation"),
    ("cuda_graph", r"CUDA graph pool memory: ([\d.]+) GiB \(actual\)"),
    ("cuda_graph_estimate", r"CUDA graph pool memory: .{0,40}?([\d.]+) GiB \(estimated\)"),
)


@dataclass(frozen=True)
class ServerFacts:
    """What a running server says about itself; None where it does not."""

    num_gpu_blocks: int
    block_size: int
    weights_gib: float | None
    kv_cache_gib: float | None
    max_num_batched_tokens: int | None
    graph_sizes: tuple[int, ...]
    vllm_version: str
    start_s: float
    #: GiB of the GPU's memory that do not go to the KV cache, as the log tells: ``consumed``
    #: (weights and what is not PyTorch's), ``peak_activation`` (with what is reserved for CUDA
    #: graphs), ``cuda_graph`` (as captured) and ``cuda_graph_estimate`` (as reserved)
    memory_gib: Mapping[str, float] = field(default_factory=dict)


def serve_command(given: str | None) -> list[str]:
    """The command that starts a server, without its arguments: the given one, or else ``vllm
    serve``, or vLLM's module where the command is not on PATH.

    Raises
    ------
    CalibrationError
        If vLLM is not installed.
    """
    if given:
        return shlex.split(given)
    if shutil.which("vllm"):
        return ["vllm", "serve"]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    raise CalibrationError(
        "vLLM is not installed here: install vllm >= 0.24, or give --serve-command"
    )


def serve(start: Sequence[str], checkpoint: str, name: str, *flags: str) -> list[str]:
    """The command line that serves a checkpoint under a name, but for its port.

    ``start`` is as :func:`serve_command` gives it.
    """
    model = [checkpoint] if start[-1:] == ["serve"] else ["--model", checkpoint]
    return [*start, *model, "--served-model-name", name, "--host", "127.0.0.1", *flags]


def free_port() -> int:
    """A TCP port that is free at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def crash_reason(log: str) -> str:
    """Why a server ended, from its log: what it means if known, and the line that says so."""
    for pattern, meaning in _REASONS:
        found = re.search(pattern, log, re.IGNORECASE | re.DOTALL)
        if found is not None:
            begin = log.rfind("\n", 0, found.start()) + 1
            end = log.find("\n", found.end())
            line = log[begin : end if end >= 0 else None].strip()
            return f"{meaning}; the log says: {_shorten(line)}"
    errors = [x for x in log.splitlines() if re.search(r"\b\w*(Error|Exception|error):", x)]
    lines = errors or log.strip().splitlines()
    return f"the log says: {_shorten(lines[-1])}" if lines else "its log is empty"


def _shorten(line: str) -> str:
    return line if len(line) <= 400 else f"{line[:200]} ... {line[-180:]}"


@dataclass
class Server:
    """One server on some GPUs."""

    #: The whole command line, without ``--port``.
    command: Sequence[str]
    #: The process's environment.
    environment: Mapping[str, str]
    #: Gets what the server prints.
    log: Path
    #: Where it listens on the loopback interface; 0 chooses a free one.
    port: int = 0
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _healthy: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def start(self) -> None:
        """Start the process in a group of its own. It ends when this process does."""
        self.port = self.port or free_port()
        guard = Path(__file__).with_name("guard.py")
        self._started = time.perf_counter()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(guard), *self.command, "--port", str(self.port)],
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def check_alive(self) -> None:
        """Raise CalibrationError, with the reason, if the server has ended."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            reason = crash_reason(self.log_text())
            raise CalibrationError(f"the server ended with code {code}: {reason} (log: {self.log})")

    def wait_healthy(
        self, timeout_s: float, waiting: Callable[[float], None] | None = None
    ) -> float:
        """Wait until ``/health`` answers; return the seconds it took since the start.

        ``waiting`` is called a few times a second with the seconds waited; what it raises ends the
        wait.

        Raises
        ------
        CalibrationError
            If the server ends or is not healthy in time.
        """
        while True:
            self.check_alive()
            waited = time.perf_counter() - self._started
            if self._get("/health", 2.0) is not None:
                self._healthy = waited
                return waited
            if waited > timeout_s:
                raise CalibrationError(
                    f"the server is not healthy after {waited:.0f} s: "
                    f"{crash_reason(self.log_text())} (log: {self.log}); "
                    "allow it more with --start-timeout"
                )
            if waiting is not None:
                waiting(waited)
            time.sleep(0.25)

    def facts(self) -> ServerFacts:
        """What the server says about itself, from /metrics, /version and its log.

        Raises
        ------
        CalibrationError
            If it does not tell its number of KV blocks.
        """
        metrics, log = self._get("/metrics", 10.0) or "", self.log_text()
        told = (s.labels for s in samples(metrics) if s.name == "vllm:cache_config_info")
        labels = next(told, {})
        block_size = int(labels["block_size"]) if labels.get("block_size", "").isdigit() else 16
        blocks = labels.get("num_gpu_blocks", "")
        tokens = re.findall(r"KV cache size: ([\d,]+) tokens", log)
        if blocks.isdigit():
            num_gpu_blocks = int(blocks)
        elif tokens:
            num_gpu_blocks = int(tokens[-1].replace(",", "")) // block_size
        else:
            raise CalibrationError(
                "the server does not tell its number of KV blocks: neither /metrics "
                f"(vllm:cache_config_info) nor its log has it (log: {self.log})"
            )
        sizes = re.findall(r"'?cudagraph_capture_sizes'?[:=] ?\[([\d, ]+)\]", log)
        batched = re.findall(r"max_num_batched_tokens'?[:=] ?(\d+)", log)
        version = re.search(r'"version": ?"([^"]+)"', self._get("/version", 5.0) or "")
        return ServerFacts(
            num_gpu_blocks=num_gpu_blocks,
            block_size=block_size,
            weights_gib=_last_number(r"Model loading took ([\d.]+) GiB", log),
            kv_cache_gib=_last_number(r"Available KV cache memory: ([\d.]+) GiB", log),
            max_num_batched_tokens=int(batched[-1]) if batched else None,
            graph_sizes=tuple(sorted(int(x) for x in sizes[-1].split(","))) if sizes else (),
            vllm_version=version[1] if version else "",
            start_s=self._healthy,
            memory_gib={k: v for k, p in _MEMORY if (v := _last_number(p, log)) is not None},
        )

    def log_text(self) -> str:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def stop(self, grace_s: float = 8.0) -> None:
        """End the server and everything it started; safe to call again."""
        with self._lock:
            process = self.process
            if process is None:
                return
            self._signal(signal.SIGTERM)
            deadline = time.perf_counter() + grace_s
            while process.poll() is None and time.perf_counter() < deadline:
                time.sleep(0.05)
            self._signal(signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
            gone_by = time.perf_counter() + _KILLED_S
            while self._signal(0) and time.perf_counter() < gone_by:
                time.sleep(0.05)  # children of the group may take a moment to be gone
            self.process = None
        atexit.unregister(self.stop)

    def _signal(self, number: int) -> bool:
        """Signal the whole group; False if there is none left."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
            return True
        return False

    def _get(self, path: str, timeout_s: float) -> str | None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
            return body if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _last_number(pattern: str, log: str) -> float | None:
    found = re.findall(pattern, log)
    return float(found[-1]) if found else None
