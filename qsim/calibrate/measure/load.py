"""The parent's side of the load client: one process a server, one load after another."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qsim.calibrate.measure.child import end, start
from qsim.errors import CalibrationError


@dataclass(frozen=True)
class RequestRow:
    """One request as the client saw it; times are ``time.perf_counter`` in seconds."""

    request_id: int
    prompt_tokens: int
    output_tokens: int
    sent_s: float
    first_token_s: float
    last_token_s: float
    max_gap_s: float


@dataclass(frozen=True)
class LoadResult:
    """One load that was sent and answered."""

    start_s: float
    end_s: float
    requests: tuple[RequestRow, ...]

    @property
    def duration_s(self) -> float:
        """First send to last token."""
        return self.end_s - self.start_s

    def tpot_ms(self) -> float:
        """Mean time per output token of the requests with more than one; NaN if none."""
        values = [
            (r.last_token_s - r.first_token_s) / (r.output_tokens - 1)
            for r in self.requests
            if r.output_tokens > 1
        ]
        return 1e3 * sum(values) / len(values) if values else float("nan")


class LoadClient:
    """A client process for the server on ``port`` of ``host``; close it when done."""

    def __init__(self, port: int, *, model: str, vocab_size: int, host: str = "127.0.0.1") -> None:
        self.process = start(
            "qsim.calibrate.measure.client",
            f"--host={host}",
            f"--port={port}",
            f"--model={model}",
            f"--vocab-size={vocab_size}",
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def run(
        self, load: dict[str, Any], timeout_s: float, waiting: Callable[[], None]
    ) -> LoadResult:
        """Send a load (see ``client.run_load``) and wait for the answers.

        Parameters
        ----------
        load : dict
            What to send.
        timeout_s : float
            How long to wait at most.
        waiting : callable
            Called a few times a second; what it raises ends the wait.

        Raises
        ------
        CalibrationError
            If a request failed or the answers did not come in time.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(load, separators=(",", ":")) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise CalibrationError("the load client has ended unexpectedly") from None
        waited = 0.0
        while True:
            try:
                line = self.lines.get(timeout=0.2)
                break
            except queue.Empty:
                waited += 0.2
                waiting()
                if waited > timeout_s:
                    raise CalibrationError(
                        f"the load {load.get('label', '')!r} was not answered within "
                        f"{timeout_s:.0f} s; it is too large for this server"
                    ) from None
        if line is None:
            raise CalibrationError("the load client has ended unexpectedly")
        return _result(json.loads(line), str(load.get("label", "")))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        end(self.process, 2.0)


def _result(data: dict[str, Any], label: str) -> LoadResult:
    if "error" in data:
        raise CalibrationError(f"the load {label!r} failed: {data['error']}")
    failed = [row for row in data["requests"] if row[8]]
    if failed:
        row = failed[0]
        raise CalibrationError(
            f"{len(failed)} of {len(data['requests'])} requests of the load {label!r} failed; "
            f"request {row[0]} ({row[1]} prompt tokens, {row[2]} output tokens): {row[8]}"
        )
    return LoadResult(
        data["start_s"], data["end_s"], tuple(RequestRow(*r[:7]) for r in data["requests"])
    )
