"""Quality of several methods in one go: a server of each in turn, lm-eval on it, the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsim.calibrate.measure.server import Server, serve, serve_command
from qsim.catalog.methods import Method, contradiction, find_method
from qsim.catalog.models import Model, load_model
from qsim.errors import CalibrationError, ScenarioError
from qsim.quality.measure import Run, evaluate, load_run

#: the method that recoveries are shares of
BASELINE = "bf16"


@dataclass(frozen=True)
class Served:
    """A method, and the checkpoint that is served for it."""

    method: Method
    model: Model

    @property
    def checkpoint(self) -> str:
        """What ``vllm serve`` loads."""
        assert self.model.source is not None  # load_model without dummy weights
        return self.model.source

    @property
    def name(self) -> str:
        """The name it is served under."""
        return f"{self.model.id}--{self.method.id}"

    def command(self, start: Sequence[str], max_model_len: int, more: Sequence[str]) -> list[str]:
        """The command line that starts its server, but for the port.

        ``start`` is as :func:`qsim.calibrate.measure.server.serve_command` gives it; ``more`` are
        the user's arguments, which come last and count.
        """
        online = self.method.online if self.model.quantization_config is None else ""
        return serve(
            start,
            self.checkpoint,
            self.name,
            *("--max-model-len", str(max_model_len)),
            *self.method.serve_args,
            *(["--quantization", online] if online else []),
            *more,
        )


def parse_served(texts: Sequence[str]) -> list[Served]:
    """Methods and their checkpoints from ``METHOD=CHECKPOINT``, the 16-bit model first.

    Raises
    ------
    ScenarioError
        For a text without ``=``, an unknown method, one that comes twice, a checkpoint that is not
        there or one that is not of its method.
    """
    found: list[Served] = []
    for text in texts:
        name, equals, checkpoint = (x.strip() for x in text.partition("="))
        if not (name and equals and checkpoint):
            raise ScenarioError(
                f"--serve is {text!r}; write METHOD=CHECKPOINT, as in fp8-w8a8=my-org/Llama-3.1-8B"
            )
        served = Served(find_method(name), load_model(checkpoint))
        if any(s.method.id == served.method.id for s in found):
            raise ScenarioError(f"--serve names {served.method.id} twice; give each method once")
        reason = contradiction(served.method, served.model)
        if reason is not None:
            raise ScenarioError(f"--serve {text}: {reason}")
        found.append(served)
    return sorted(found, key=lambda s: s.method.id != BASELINE)


def scores_of(folder: str | os.PathLike[str], method: str) -> Path:
    """Where the scores of a method lie in the folder of a campaign."""
    return Path(folder) / f"scores-{method}.json"


def serve_and_evaluate(
    served: Sequence[Served],
    tasks: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    date: str,
    max_model_len: int,
    command: str | None = None,
    server_args: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = 900.0,
    tokenizer: str | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> tuple[dict[str, Run], dict[str, str]]:
    """Measure each method; keep its scores in ``folder`` at once.

    One that fails stops none of the others. ``command`` starts a server (``vllm serve`` by
    default), with ``server_args`` and the ``environment`` (this process's by default); it may take
    ``start_timeout_s`` until it is healthy. ``resume`` takes the scores that are in ``folder``
    already. The rest is as for :func:`qsim.quality.measure.evaluate`; the tokenizer is by default
    the checkpoint's.

    Returns
    -------
    runs : dict of str to Run
        By method.
    failed : dict of str to str
        The reason, by method.

    Raises
    ------
    ScenarioError
        If ``folder`` has scores of a method already and ``resume`` is not set, or they lack a task.
    CalibrationError
        If there is no vLLM.
    """
    start = serve_command(command)
    runs: dict[str, Run] = {}
    for s in served:
        kept = scores_of(folder, s.method.id)
        if not kept.exists():
            continue
        if not resume:
            raise ScenarioError(
                f"{kept} is there already: --resume takes it, or give another --out"
            )
        runs[s.method.id] = load_run(kept, tasks)
        say(f"{s.method.id}: scores of {runs[s.method.id].date} in {kept}")
    failed: dict[str, str] = {}
    for s in served:
        method = s.method.id
        if method in runs:
            continue
        server = Server(
            s.command(start, max_model_len, server_args),
            dict(os.environ if environment is None else environment),
            Path(folder) / f"server-{method}.log",
        )
        try:
            say(f"{method}: starting a server of {s.checkpoint}")
            server.start()
            took_s = server.wait_healthy(start_timeout_s)
            say(f"{method}: up after {took_s:.0f} s, measuring")
            run = evaluate(
                f"http://{server.host}:{server.port}", s.name, tasks, date=date,
                max_model_len=max_model_len, tokenizer=tokenizer or s.checkpoint, **options,
            )  # fmt: skip
            run.save(scores_of(folder, method))
            runs[method] = run
        except (CalibrationError, OSError) as e:
            failed[method] = str(e)
            say(f"{method} failed: {e}")
        finally:
            server.stop()
    return runs, failed
