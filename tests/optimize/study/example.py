"""A small study made by hand, for the tests of reports and pictures; its numbers are made up."""

from __future__ import annotations

from collections.abc import Mapping

from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import (
    ApplicationRow,
    HardwareRow,
    ParallelismRow,
    Run,
    WorkloadRow,
)
from qsim.optimize.study.result import (
    Decision,
    Finding,
    Provenance,
    StudyResult,
    TaskShape,
)

__all__ = ["example_study"]

GPUS = ("h200_sxm", "a100_sxm")
METHODS = ("bf16", "fp8-w8a8", "awq-w4a16")
MODEL = "llama-3.1-8b"
#: by GPU: error of latencies and energy, percent
ERROR = {"h200_sxm": 4.0, "a100_sxm": 25.0}
#: J and ms of a method, as parts of those of bf16
SPEED = {"bf16": 1.0, "fp8-w8a8": 0.7, "awq-w4a16": 0.62}
BUSY_SPEED = {"bf16": 1.0, "fp8-w8a8": 0.66, "awq-w4a16": 1.15}
QUALITY = {"bf16": (100.0, 100.0, 100.0), "fp8-w8a8": (99.5, 98.9, 100.1),
           "awq-w4a16": (96.4, 95.0, 97.8)}  # fmt: skip
SLOWER = {"h200_sxm": 1.0, "a100_sxm": 1.9}


class _Runs:
    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def add(self, level: str, gpu: str, method: str, trace: str, slow: float, tp: int = 1,
            replicas: int = 1) -> tuple[str, dict[str, Band | None]]:  # fmt: skip
        scale = slow * SLOWER[gpu] / tp**0.8
        values: Mapping[str, float | None] = {
            "mean_ttft_ms": 40.0 * scale,
            "p99_ttft_ms": 130.0 * scale,
            "mean_tpot_ms": 7.0 * scale,
            "p99_tpot_ms": 11.0 * scale,
            "mean_e2el_ms": 1500.0 * scale,
            "p99_e2el_ms": 4200.0 * scale,
            "request_throughput": 10.0 * replicas,
            "output_throughput": 2100.0 / scale * replicas,
            "output_throughput_per_gpu": 2100.0 / scale / tp,
            "joules_per_request": 60.0 * scale,
            "joules_per_output_token": 0.28 * scale,
            "avg_power_w": 430.0 * tp * replicas,
            "usd_per_1m_output_tokens": 0.5 * scale,
            "mean_concurrency": 15.0 * scale,
            "power_limit_share": 0.02,
        }
        name = f"r{len(self.runs) + 1:04d}"
        profile = f"{gpu}/{MODEL}/{method}" + (f"/tp{tp}" if tp > 1 else "")
        self.runs[name] = Run(
            name, level, profile, gpu, method, tp, replicas, trace,
            f"qsim simulate {trace} --profile {profile} --replicas {replicas} --json -",
            values, "sustained", 0.0, 800,
        )  # fmt: skip
        figures: dict[str, Band | None] = {
            k: None if v is None else Band.around(v, ERROR[gpu]) for k, v in values.items()
        }
        return name, figures


def example_study() -> StudyResult:
    """A study of three methods on a measured and a transferred GPU, with every level."""
    runs = _Runs()
    tasks = (
        TaskShape("chat", "azure-conv-2023:requests=800", 1155.0, 211.0, {"ifeval": 1.0}, "A"),
        TaskShape("code", "azure-code-2023:requests=800", 2048.0, 28.0, {"humaneval": 1.0}, "B"),
    )
    application = []
    for t, task in enumerate(tasks):
        for gpu in GPUS:
            for method in METHODS:
                slow = SPEED[method] * (1 + t)
                run, figures = runs.add("application", gpu, method, task.trace, slow)
                highest = Band.around(30.0 / slow / SLOWER[gpu], ERROR[gpu])
                mean, low, high = QUALITY[method]
                application.append(ApplicationRow(
                    task.name, gpu, method, 10.0, Band(mean - t, low - t, high - t),
                    "published" if t else "estimated", run, figures, highest, run,
                    Band.around(0.2 * slow, ERROR[gpu]), method != "awq-w4a16",
                ))  # fmt: skip
    workload = []
    for gpu in GPUS:
        for method in METHODS:
            for i, rate in enumerate((5.0, 10.0, 20.0, 30.0, 40.0)):
                slow = SPEED[method] + (BUSY_SPEED[method] - SPEED[method]) * i / 4 + 0.3 * i**2
                run, figures = runs.add(
                    "workload", gpu, method, f"azure-conv-2023:rate={rate}", slow
                )
                workload.append(
                    WorkloadRow("rate", gpu, method, rate, None, "busy", i < 4, run, figures)
                )
            for prompt in (256, 1024, 4096):
                for output in (64, 256):
                    slow = SPEED[method] * (prompt / 1024 + output / 256)
                    run, figures = runs.add("workload", gpu, method, f"p={prompt},o={output}", slow)
                    workload.append(WorkloadRow(
                        "lengths", gpu, method, prompt, output, "saturated", False, run, figures
                    ))  # fmt: skip
            for i, clients in enumerate((1, 8, 32, 128)):
                slow = SPEED[method] + (BUSY_SPEED[method] - SPEED[method]) * i / 3 + i
                run, figures = runs.add("workload", gpu, method, f"clients={clients}", slow)
                workload.append(WorkloadRow(
                    "concurrency", gpu, method, clients, None, "saturated", True, run, figures
                ))  # fmt: skip
            for cv in (0.5, 1.0, 2.0, 4.0):
                run, figures = runs.add("workload", gpu, method, f"cv={cv}", SPEED[method] + cv / 4)
                workload.append(
                    WorkloadRow("burstiness", gpu, method, cv, None, "busy", True, run, figures)
                )
            for i, seqs in enumerate((8, 16, 32, 64, 128, 256)):
                slow = SPEED[method] + (BUSY_SPEED[method] - SPEED[method]) * i / 5
                run, figures = runs.add("workload", gpu, method, f"seqs={seqs}", slow * (1 + i / 2))
                workload.append(
                    WorkloadRow("batch", gpu, method, seqs, None, "saturated", False, run, figures)
                )
    parallelism, hardware = [], []
    for gpu in GPUS:
        for method in METHODS:
            for size in (1, 2, 4):
                for load in ("busy", "saturated"):
                    run, figures = runs.add(
                        "parallelism", gpu, method, load, SPEED[method], size, 4 // size
                    )
                    parallelism.append(ParallelismRow(
                        gpu, method, size, 4 // size, 4, load, Band.exact(1e6 * 4 // size),
                        run, figures,
                    ))  # fmt: skip
            for load in ("busy", "saturated"):
                run, figures = runs.add("hardware", gpu, method, load, SPEED[method])
                hardware.append(HardwareRow(
                    gpu, method, 1, load, Band.around(9e5 / SLOWER[gpu], 4.0 * (gpu != "h200_sxm")),
                    120.0 / SLOWER[gpu], 330.0 / SLOWER[gpu], 700.0 / SLOWER[gpu], run, figures,
                ))  # fmt: skip
    pair = [r for r in workload if r.axis == "batch" and r.gpu == "h200_sxm"]
    low = {r.method: r for r in pair if r.x == 8}
    high = {r.method: r for r in pair if r.x == 256}
    numbers = {}
    for at, rows in (("8", low), ("256", high)):
        for method in ("awq-w4a16", "fp8-w8a8"):
            band = rows[method].figures["mean_tpot_ms"]
            assert band is not None
            numbers[f"{method} at {at}"] = band
    rests_on = tuple(r.run for rows in (low, high) for r in rows.values() if r.method != "bf16")
    findings = (
        Finding(
            1, "crossing", "workload", "h200_sxm", ("awq-w4a16", "fp8-w8a8"),
            "On h200_sxm, awq-w4a16 has a lower mean TPOT than fp8-w8a8 below 32 concurrent "
            "requests, and a higher one above",
            numbers, "mean_tpot_ms", 1.74, 8.2, rests_on,
            tuple(runs.runs[r].command for r in rests_on), "batch", 32.0,
        ),
        Finding(
            2, "loss", "application", "", ("awq-w4a16",),
            "awq-w4a16 loses most on code: 95.4% of the 16-bit score",
            {"code": Band(95.4, 94.0, 96.8), "chat": Band(96.4, 95.0, 97.8)}, "quality", 1.01, 1.4,
            (), ("qsim quality llama-3.1-8b --method awq-w4a16",),
        ),
    )  # fmt: skip
    decisions = tuple(
        Decision(
            gpu, task.name, goal, "fp8-w8a8", Band.around(42.0, ERROR[gpu]), figure,
            ("awq-w4a16",) if gpu == "a100_sxm" else (), 99.0, ("r0002",),
        )
        for gpu in GPUS
        for task in tasks
        for goal, figure in (("latency", "mean_e2el_ms"), ("energy", "joules_per_request"),
                             ("cost", "usd_per_1m_output_tokens"))
    )  # fmt: skip
    provenance = tuple(
        Provenance(
            f"{gpu}/{MODEL}/{method}", gpu, method, 1,
            "measured" if gpu == "h200_sxm" else "transferred", "0.24.0",
            {"mean": ERROR[gpu], "median": ERROR[gpu], "p99": 1.5 * ERROR[gpu],
             "energy": ERROR[gpu], "kv_tokens": 0.0 if gpu == "h200_sxm" else 4.0},
            "" if gpu == "h200_sxm" else "transferred, not measured",
        )
        for gpu in GPUS
        for method in METHODS
    )  # fmt: skip
    return StudyResult(
        MODEL, GPUS, METHODS, tasks, "azure-conv-2023", tuple(application), tuple(workload),
        tuple(parallelism), tuple(hardware), runs.runs, findings, decisions, provenance,
        ("An example: its numbers are made up",), {"seed": 0}, f"qsim study --model {MODEL}",
    )  # fmt: skip
