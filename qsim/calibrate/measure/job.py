"""One server to measure: what it serves, and how it is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsim.calibrate.measure.server import Server, serve
from qsim.calibrate.measure.speed import Speed
from qsim.calibrate.measure.workload import HoldoutTrace
from qsim.calibrate.recorder import install
from qsim.catalog.gpus import GIB, GpuType
from qsim.catalog.methods import Method
from qsim.catalog.models import Model, write_dummy
from qsim.errors import ScenarioError

SERVED_NAME = "m"
#: shortest --max-model-len under which the loads fit
LEAST_MODEL_LEN = 2048


@dataclass(frozen=True)
class Job:
    """One server to measure."""

    model: Model
    method: Method
    gpu: GpuType
    dummy_weights: bool
    tensor_parallel_size: int = 1
    #: how long the loads may take together
    load_s: float = 150.0
    max_model_len: int | None = None
    seed: int = 0
    serve_command: tuple[str, ...] = ("vllm", "serve")
    server_args: tuple[str, ...] = ()
    server_env: tuple[tuple[str, str], ...] = ()
    start_timeout_s: float = 900.0
    holdout: tuple[HoldoutTrace, ...] = ()
    #: no loads for a fit: enough to check a profile
    only_holdout: bool = False
    #: closed loops of so many clients, held out
    clients: tuple[int, ...] = ()
    #: an estimate, for the plan and the time left
    start_s: float = field(default=90.0, compare=False)
    driver: str = ""
    power_limit_w: float | None = None

    def __post_init__(self) -> None:
        if self.model_len < LEAST_MODEL_LEN:
            raise ScenarioError(
                f"max_position_embeddings of {self.model.id} is {self.model_len}; the loads need "
                f"servers of at least {LEAST_MODEL_LEN} tokens a sequence"
            )

    @property
    def name(self) -> str:
        """The recording's folder."""
        tp = self.tensor_parallel_size
        name = f"{self.model.id}--{self.method.id}" + (f"--tp{tp}" if tp > 1 else "")
        return name + ("--check" if self.only_holdout else "")

    @property
    def model_len(self) -> int:
        """The server's --max-model-len."""
        longest = self.model.architecture.max_position_embeddings
        return min(self.max_model_len or 32768, longest)

    @property
    def max_num_seqs(self) -> int:
        """vLLM's default for a server: 1024 on GPUs of 70 GiB or more other than the A100."""
        given = _value_of("--max-num-seqs", self.server_args)
        if given is not None:
            return int(given)
        return 1024 if self.gpu.memory_bytes >= 70 * GIB and "a100" not in self.gpu.id else 256

    @property
    def speed(self) -> Speed:
        """How fast it should be."""
        return Speed.guess(
            self.model.architecture, self.method, self.gpu, self.tensor_parallel_size
        )


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """What ``--option VALUE`` or ``--option=VALUE`` says; the last one counts, as in vLLM."""
    value = None
    for i, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            value = arg.partition("=")[2]
        elif arg == option and i + 1 < len(args):
            value = args[i + 1]
    return value


def server_flags(job: Job) -> list[str]:
    """The arguments that go into the recording: all but the model, the name and the address."""
    return [
        *(["--load-format", "dummy"] if job.dummy_weights else []),
        "--no-enable-prefix-caching",
        "--max-model-len",
        str(job.model_len),
        "--tensor-parallel-size",
        str(job.tensor_parallel_size),
        "--no-enable-log-requests",
        *job.method.serve_args,
        *_online(job),
        *job.server_args,
    ]


def _online(job: Job) -> list[str]:
    """Quantize a bf16 checkpoint while it loads, where the method allows that."""
    wanted = not job.dummy_weights and job.model.quantization_config is None
    return ["--quantization", job.method.online] if wanted and job.method.online else []


def server_command(job: Job, model_path: str) -> list[str]:
    """The command line that starts the server, but for its port."""
    return serve(list(job.serve_command), model_path, SERVED_NAME, *server_flags(job))


def environment(job: Job, gpus: Sequence[int], base: Mapping[str, str]) -> dict[str, str]:
    """The server's environment, without the recorder's part."""
    result = dict(base)
    result |= {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if job.dummy_weights:
        result["HF_HUB_OFFLINE"] = "1"
    result |= dict(job.server_env)
    return result


def prepared_server(
    job: Job, gpus: Sequence[int], work: Path, *, steps: bool = True
) -> tuple[Server, dict[str, Any]]:
    """The job's server, not yet started, and the configuration that the served model has.

    The recorder and dummy weights lie in ``work``, and the server logs to ``work/server.log``.
    ``gpus`` are NVML's numbers. Without ``steps`` only dummy weights are looked after.
    """
    source, config = job.model.source, job.model.config
    if job.dummy_weights:
        config = write_dummy(job.model, work / "model", job.method.config)
        source = str(work / "model")
    assert source is not None
    env = install(
        work / "recorder",
        environment(job, gpus, os.environ),
        tensor_parallel_size=job.tensor_parallel_size,
        random_dummy_bits=job.dummy_weights,
        weight_bits=job.method.integer_bits,
        steps=steps,
    )
    return Server(server_command(job, source), env, work / "server.log"), config
