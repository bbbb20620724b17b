"""``qsim methods``: the catalogue of quantization methods."""

from __future__ import annotations

import json
from typing import Any

import click

from qsim.cli._command import Command


@click.command("methods", cls=Command)
@click.option("--gpu", metavar="ID", default="h200_sxm", show_default=True,
              help="h200_sxm, h100_sxm or a100_sxm.")  # fmt: skip
@click.option("--model", metavar="NAME|DIR|HF-ID", help="Adds weight and KV bytes, and what fits.")
@click.option("--tensor-parallel-size", type=click.IntRange(min=1), default=1, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def methods(gpu: str, model: str | None, tensor_parallel_size: int, as_json: bool) -> None:
    """List the quantization methods: vLLM configuration, kernels, bytes, support.

    Add +kv-fp8 to any method for an FP8 KV cache. For all methods the embedding, the LM head and
    the norms stay in bf16.
    """
    from qsim.catalog.gpus import gpu_type
    from qsim.catalog.methods import METHODS, check, weight_bytes
    from qsim.catalog.models import load_model
    from qsim.cli._outputs import note
    from qsim.report.text.tables import table

    kind = gpu_type(gpu)
    known = None if model is None else load_model(model, dummy_weights=True)
    for remark in [] if known is None else known.remarks:
        note(remark)
    rows: list[dict[str, Any]] = []
    for method in METHODS.values():
        kernel = method.kernel(kind)
        row: dict[str, Any] = {
            "method": method.id,
            "what": method.what,
            "kernel": kernel or None,
            "kernel_hopper": method.hopper or None,
            "kernel_ampere": method.ampere or None,
            "refusal": None if kernel else method.refusal,
            "dummy_weights": True,  # each runs on random bits
            "quantization_config": method.config,
            "serve_args": method.serve_args,
            "online": method.online or None,
        }
        if known is not None:
            tp = tensor_parallel_size
            row["weight_bytes"] = weight_bytes(method, known.architecture, tp)
            row["kv_bytes_per_token"] = known.architecture.kv_bytes_per_token(2, tp)
            row["refusal"] = check(method, known, kind, tp)
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    heads = ["method", "weights GiB", "kernel", "what"] if known else ["method", "kernel", "what"]
    cells = [
        [
            r["method"],
            *([f"{r['weight_bytes'] / 2**30:.2f}"] if known else []),
            r["kernel"] or "-",
            r["what"] if r["refusal"] is None else f"not here: {r['refusal']}",
        ]
        for r in rows
    ]
    click.echo(table(heads, cells, left=len(heads)))
