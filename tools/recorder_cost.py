"""Measure what the step recorder costs: a server with it beside one without it, on one GPU.

    python tools/recorder_cost.py --model llama-3.1-8b --method fp8-w8a8 --json cost.json

``recorder_cost`` in a recording's server.json is the time that the recorder spends on the host. How
much longer a step takes for it is another question: the host mostly waits for the GPU meanwhile.
Here two servers of the same model share a GPU and get the same loads in turn (with, without,
without, with, ...), one idle while the other works. What is compared is what the client sees: the
time per output token of a batch, or the duration of a load of prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from qsim.calibrate.measure.job import SERVED_NAME, Job, environment, server_command
from qsim.calibrate.measure.load import LoadClient, LoadResult
from qsim.calibrate.measure.server import Server, serve_command
from qsim.calibrate.measure.tidy import recorder_cost
from qsim.calibrate.recorder import install, read_hooks, read_steps
from qsim.catalog.gpus import GPUS
from qsim.catalog.methods import METHODS, check
from qsim.catalog.models import load_model, write_dummy
from qsim.errors import CalibrationError, QsimError
from qsim.files import write_text

#: requests at once of the loads of decodes; they all decode this many tokens
BATCHES, OUTPUT_TOKENS = (1, 16, 64, 256), 200
#: prompts of this many tokens, so many in flight, with short outputs
PROMPTS, PROMPT_TOKENS, FLYING, SHORT_OUTPUT = 200, 500, 32, 20
#: with (True) or without the recorder
KINDS = {True: "with", False: "without"}


def loads() -> dict[str, dict[str, Any]]:
    """What both servers get: name and load, see ``qsim.calibrate.measure.client.run_load``."""
    result = {}
    for n in BATCHES:
        stream = {"at_s": [0.0] * n, "prompt": [16] * n, "output": [OUTPUT_TOKENS] * n}
        result[f"decode {n}"] = {"label": f"decode {n}", "seed": [n], "streams": [stream]}
    stream = {"concurrency": FLYING, "prompt": [PROMPT_TOKENS] * PROMPTS,
              "output": [SHORT_OUTPUT] * PROMPTS}  # fmt: skip
    result["prompts"] = {"label": "prompts", "seed": [0], "streams": [stream]}
    return result


def value_ms(name: str, result: LoadResult) -> float:
    """The mean time per output token, or of prompts the time of the load per request; ms."""
    if name == "prompts":
        return 1e3 * result.duration_s / len(result.requests)
    return result.tpot_ms()


def order(rounds: int) -> list[tuple[bool, bool]]:
    """Which of both comes first in each round: they take turns, so that a drift cancels."""
    return [(True, False) if i % 2 == 0 else (False, True) for i in range(rounds)]


def compare(seen: Mapping[bool, Sequence[float]]) -> dict[str, float]:
    """By how much the values with the recorder are larger, in percent, and its standard error."""
    percent = [100 * (a / b - 1) for a, b in zip(seen[True], seen[False], strict=True)]
    error = stdev(percent) / math.sqrt(len(percent)) if len(percent) > 1 else float("nan")
    return {
        "with_ms": round(mean(seen[True]), 4),
        "without_ms": round(mean(seen[False]), 4),
        "percent": round(mean(percent), 3),
        "standard_error_percent": round(error, 3),
    }


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Start both servers, send the loads in turn, and compare."""
    model, method = load_model(args.model, dummy_weights=True), METHODS[args.method]
    gpu = GPUS[args.gpu_type]
    if (reason := check(method, model, gpu, 1)) is not None:
        raise CalibrationError(f"{args.model} with {args.method}: {reason}")
    memory = ("--kv-cache-memory-bytes", str(args.kv_gib << 30), "--gpu-memory-utilization", "0.3")
    job = Job(model, method, gpu, True, serve_command=tuple(serve_command(args.serve_command)),
              server_args=memory)  # fmt: skip
    write_dummy(model, work / "model", method.config)
    servers: dict[bool, Server] = {}
    clients: dict[bool, LoadClient] = {}
    with ExitStack() as stack:
        for recorded, name in KINDS.items():
            env = install(
                work / name,
                environment(job, [args.gpu], os.environ),
                random_dummy_bits=True,
                weight_bits=method.integer_bits,
                steps=recorded,
            )
            command = server_command(job, str(work / "model"))
            servers[recorded] = Server(command, env, work / f"{name}.log")
            stack.callback(servers[recorded].stop)
            servers[recorded].start()
        for recorded, server in servers.items():
            server.wait_healthy(args.start_timeout)
            clients[recorded] = LoadClient(
                server.port, model=SERVED_NAME, vocab_size=model.architecture.vocab_size
            )
            stack.callback(clients[recorded].close)
        read_hooks(work / KINDS[True])
        seen: dict[str, dict[bool, list[float]]] = {n: {True: [], False: []} for n in loads()}
        for i, turn in enumerate([(True, False), *order(args.rounds)]):
            for name, load in loads().items():
                for recorded in turn:
                    alive = servers[recorded].check_alive
                    value = value_ms(name, clients[recorded].run(load, 120.0, alive))
                    if i:  # the first round warms up
                        seen[name][recorded].append(value)
            print(f"round {i} of {args.rounds}", file=sys.stderr, flush=True)
            if i >= 2 and args.json is not None:  # the machine may be taken away
                write_text(args.json, json.dumps(result(args, i, seen, work), indent=1) + "\n")
    return result(args, args.rounds, seen, work)


def result(
    args: argparse.Namespace,
    rounds: int,
    seen: Mapping[str, Mapping[bool, list[float]]],
    work: Path,
) -> dict[str, Any]:
    """What was seen in so many rounds."""
    steps = read_steps(work / KINDS[True] / "rows")
    return {
        "model": args.model,
        "method": args.method,
        "rounds": rounds,
        "loads": {name: compare(values) for name, values in seen.items()},
        "on_the_host": recorder_cost(steps),
        "values_ms": {n: {KINDS[k]: x for k, x in v.items()} for n, v in seen.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--method", default="fp8-w8a8", choices=sorted(METHODS))
    parser.add_argument("--gpu", type=int, default=0, help="NVML's number")
    parser.add_argument("--gpu-type", default="h200_sxm", choices=sorted(GPUS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--kv-gib", type=int, default=20, help="KV cache of each server")
    parser.add_argument("--start-timeout", type=float, default=300.0)
    parser.add_argument("--serve-command", help="in place of vllm serve")
    parser.add_argument("--json", type=Path, help="the numbers, with all values")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds is {args.rounds}; must be 2 or more, to know how much they differ")
    with tempfile.TemporaryDirectory(prefix="recorder-cost-") as folder:
        try:
            found = measure(args, Path(folder))
        except QsimError as e:
            print(f"Error: {e}", file=sys.stderr)
            return 1
    if args.json is not None:
        write_text(args.json, json.dumps(found, indent=1) + "\n")
    print("| load | with, ms | without, ms | the recorder costs |\n|---|---:|---:|---:|")
    for name, c in found["loads"].items():
        print(
            f"| {name} | {c['with_ms']:.3f} | {c['without_ms']:.3f} "
            f"| {c['percent']:+.2f}% ± {c['standard_error_percent']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
