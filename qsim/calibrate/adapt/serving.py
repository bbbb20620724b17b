"""A server that is started for adapting: the profile's, with the flags it was measured with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qsim.calibrate.adapt.server import check_graphs
from qsim.calibrate.measure.job import Job, prepared_server
from qsim.calibrate.measure.server import ServerFacts, serve_command
from qsim.catalog.gpus import gpu_type
from qsim.catalog.methods import find_method
from qsim.catalog.models import Architecture, Model, load_model
from qsim.errors import CalibrationError
from qsim.profiles.schema import Profile

__all__ = ["check_started", "serving"]

#: a server's longest sequence: the loads of adapting are far shorter
_MODEL_LEN = 32768


@contextmanager
def serving(
    profile: Profile,
    gpus: Sequence[int],
    *,
    model: str | None = None,
    command: str | None = None,
    start_timeout_s: float = 900.0,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """Start the profile's server, and give its base URL; it ends with the ``with`` block.

    Parameters
    ----------
    gpus : sequence of int
        NVML's numbers; as many as the profile's server has.
    model : str, optional
        A checkpoint; by default weights are dummies with random bits.
    command : str, optional
        Starts vLLM; as for ``qsim calibrate run``.

    Raises
    ------
    CalibrationError
        If it does not come up, or is not what the profile was measured with.
    ScenarioError
        If there is no such checkpoint, or the number of GPUs is another.
    """
    i = profile.identity
    if len(gpus) != i.tensor_parallel_size:
        raise CalibrationError(
            f"{len(gpus)} GPUs are named, and a server of {profile.id} has "
            f"{i.tensor_parallel_size}: give --gpus with as many"
        )
    dummy = model is None
    if model is None:
        config = dict(i.architecture)
        served = Model(i.model, config, Architecture.from_config(config, i.model), None)
    else:
        served = load_model(model)
    job = Job(
        served,
        find_method(i.method),
        gpu_type(i.gpu),
        dummy,
        tensor_parallel_size=i.tensor_parallel_size,
        max_model_len=_MODEL_LEN,
        serve_command=tuple(serve_command(command)),
        server_args=tuple(i.vllm_args),
        start_timeout_s=start_timeout_s,
    )
    with tempfile.TemporaryDirectory(prefix="qsim-adapt-") as folder:
        server, _ = prepared_server(job, gpus, Path(folder), steps=False)
        try:
            say("starting the server")
            server.start()
            server.wait_healthy(start_timeout_s)
            check_started(server.facts(), profile)
            yield f"http://{server.host}:{server.port}"
        finally:
            server.stop()


def check_started(facts: ServerFacts, profile: Profile) -> None:
    """Whether a server that was started captured the profile's CUDA graphs.

    Raises
    ------
    CalibrationError
        If it says that it captured others.
    """
    if facts.graph_sizes:
        check_graphs(facts.graph_sizes, profile)
