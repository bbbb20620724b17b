"""The ``vllm serve`` commands that start what was simulated, and the real router before them."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.plan.candidate import Candidate
from qsim.sim.fleet.routers.router import check_router

if TYPE_CHECKING:
    from qsim.optimize.deploy.deployment import Pool


#: GPUs of one machine, as in DGX and HGX servers
GPUS_PER_HOST = 8


def checkpoint(model: str, method: str) -> str:
    """A public Hugging Face checkpoint of ``model`` quantized by ``method``.

    For a combination that qsim knows none of, a path to replace by your own:
    ``path/to/<model>-<method>``; :func:`unknown_checkpoint` says so.
    """
    text = (resources.files("qsim.optimize.deploy") / "data" / "checkpoints.csv").read_text("utf-8")
    weights = method.removesuffix("+kv-fp8")  # the same weights, another cache
    for row in csv.DictReader(text.splitlines()):
        if (row["model"], row["method"]) == (model, weights):
            return row["checkpoint"]
    return f"path/to/{model}-{method}"


def unknown_checkpoint(model: str, method: str) -> str:
    """What to do about a checkpoint that is a path to replace; "" where qsim knows one."""
    if not checkpoint(model, method).startswith("path/to/"):
        return ""
    return (
        f"qsim knows no public checkpoint of {model} as {method}: put your own in the place of "
        f"{checkpoint(model, method)}"
    )


def unknown_checkpoints(servers: Iterable[tuple[str, str]]) -> list[str]:
    """The same for pairs of model and method, once each."""
    texts = [unknown_checkpoint(model, method) for model, method in servers]
    return [text for text in dict.fromkeys(texts) if text]


def option_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of a command: ``--name value``, and ``--name`` or ``--no-name``."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def serve_words(what: Pool | Candidate, port: int = 8000) -> list[str]:
    """The command that starts one server, word by word.

    Every engine setting that the simulation used is told, also where it is vLLM's default: the
    default depends on the GPU and on vLLM's version, and the prediction holds for these.

    Raises
    ------
    InfeasibleError
        If a candidate meets no SLO with any fleet, so that there is nothing to start.
    """
    if isinstance(what, Candidate) and not what.feasible:
        raise InfeasibleError(f"{what.profile} is infeasible: {what.reason}")
    engine, options = what.engine, what.options
    if engine is None:
        raise InfeasibleError(f"{what.profile} has no engine settings that suit it")
    settings = {
        "tensor_parallel_size": what.tensor_parallel_size,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_active_seqs": engine.max_num_active_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
        "max_num_queued_reqs": engine.max_num_queued_reqs,
        "max_num_queued_tokens": engine.max_num_queued_tokens,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "async_scheduling": engine.async_scheduling,
        "long_prefill_token_threshold": engine.long_prefill_token_threshold or None,
        "long_prefill_token_threshold_adaptive": engine.long_prefill_token_threshold_adaptive
        or None,
        "scheduling_policy": None
        if engine.scheduling_policy == "fcfs"
        else engine.scheduling_policy,
        "port": port,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    serve = ["vllm", "serve", checkpoint(what.model, what.method), *what.vllm_args]
    return serve + option_words(given)


def serve_command(candidate: Candidate | Pool, port: int = 8000) -> str:
    """The command that starts one replica, ready for a shell; see :func:`serve_words`.

    Raises
    ------
    InfeasibleError
        If the candidate meets no SLO with any fleet, so that there is nothing to start.
    """
    return shlex.join(serve_words(candidate, port))


def serve_script(
    pools: Pool | list[Pool], gpus_per_host: int = GPUS_PER_HOST, port: int = 8000
) -> str:
    """A shell script that starts every replica, each on its own GPUs and port.

    A fleet that needs more GPUs than one machine has is spread over several: the script is run
    on each with the machine's number as its argument, ``sh serve.sh 2``. No server is split
    between machines.

    One after the other the pools take the GPUs of the first machine, then of the next; those of
    another type of GPU begin with a machine of their own. ``port`` is that of the first server of
    each machine; the others count up.

    Raises
    ------
    ScenarioError
        If one server needs more GPUs than a machine has.
    """
    pools = pools if isinstance(pools, list) else [pools]
    hosts: list[list[str]] = []
    used = gpus_per_host
    gpu = ""
    for pool in pools:
        if pool.gpu != gpu:  # a machine has one type
            gpu, used = pool.gpu, gpus_per_host
        need = pool.tensor_parallel_size
        if need > gpus_per_host:
            raise ScenarioError(
                f"gpus_per_host is {gpus_per_host!r}; must be >= {need}, the tensor-parallel size "
                f"of {pool.profile}"
            )
        for _ in range(pool.replicas):
            if used + need > gpus_per_host:
                hosts.append([])
                used = 0
            gpus = ",".join(str(g) for g in range(used, used + need))
            command = serve_command(pool, port + len(hosts[-1]))
            hosts[-1].append(f"CUDA_VISIBLE_DEVICES={gpus} {command} &")
            used += need
    lines = ["#!/bin/sh"]
    for pool in pools:
        servers = f"{pool.replicas} server{'s' if pool.replicas != 1 else ''}"
        version = f"vLLM {pool.vllm_version}: " if pool.vllm_version else ""
        what = f"{version}{servers} as simulated with {pool.profile}, behind a {pool.router} router"
        if pool.weight is not None:
            what += f", each with weight {pool.weight:g} in it"
        lines.append(f"# {' '.join(what.split())}")  # a line break would end the comment
        if unknown := unknown_checkpoint(pool.model, pool.method):
            lines.append(f"# {unknown}")
        if pool.replicas > 1 and (real := real_router(pool.router)):
            lines.append(f"# a {pool.router} router is {real}")
    if len(hosts) == 1:
        lines += hosts[0]
    else:
        lines.append(f"# {len(hosts)} machines: run it on each with its number, 1 to {len(hosts)}")
        lines.append('case "$1" in')
        for i, commands in enumerate(hosts, 1):
            lines += [f"{i})", *(f"  {c}" for c in commands), "  ;;"]
        lines += [f'*) echo "usage: $0 MACHINE, from 1 to {len(hosts)}" >&2; exit 2 ;;', "esac"]
    return "\n".join([*lines, "wait", ""])


def real_router(router: str) -> str:
    """What to put in front of the servers, for people; "" where none is known.

    The options are those of vLLM's router (vllm-project/router, docs/load_balancing), of
    production-stack's (``src/vllm_router``), and of NVIDIA Dynamo's frontend (Configuration and
    Tuning of its router).
    """
    spec = check_router(router)
    p = spec.parameters
    if spec.name == "prefix-affinity":
        return (
            f"vllm-router --policy cache_aware --cache-threshold {p['cache_threshold']:g} "
            f"--balance-abs-threshold {p['balance_abs_threshold']:.0f} "
            f"--balance-rel-threshold {p['balance_rel_threshold']:g} (it looks at the fullest "
            "server, where the simulation looked at the one that would get the request)"
        )
    if spec.name == "kv-aware":
        return (
            "python -m dynamo.frontend --router-mode kv --router-kv-overlap-score-credit "
            f"{p['overlap_score_credit']:g} --router-prefill-load-scale "
            f"{p['prefill_load_scale']:g}, with KV events of the servers"
        )
    return _SAME.get(spec.name, "")


_SAME = {
    "round-robin": "vllm-router --policy round_robin",
    "random": "a Kubernetes Service, or vllm-router --policy random",
    "least-requests": "HAProxy with balance leastconn, or nginx with least_conn",
    "power-of-two": "vllm-router --policy power_of_two, or Envoy with LEAST_REQUEST",
    "vllm": "vllm serve --data-parallel-size, which then is one server",
    "session-affinity": "vllm-router --policy consistent_hash, or production-stack with "
    "--routing-logic session, where clients send a session id as a header (neither moves a session "
    "whose server has too much to do, as the simulation did)",
}
