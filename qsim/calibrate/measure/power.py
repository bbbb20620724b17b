"""Power, energy, clock and temperature of the GPUs by NVML, sampled in a process of its own.

``python -m qsim.calibrate.measure.power --gpus 0,1 --out FILE`` writes a line a reading until its
stdin closes: ``perf_counter s, energy mJ, 1 s mean mW, instant mW, SM clock MHz, temperature C``.
Energy and power are sums over the GPUs, the clock is the lowest, the temperature the highest.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now
from typing import Any

from qsim.calibrate.measure.child import end, start
from qsim.catalog.gpus import GIB, GPUS, GpuType
from qsim.errors import CalibrationError, MissingExtraError, QsimError, ScenarioError

_FIELD_AVERAGE, _FIELD_INSTANT = 185, 186  # NVML_FI_DEV_POWER_AVERAGE, ..._INSTANT


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML describes it."""

    index: int
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    #: None where NVML does not tell it (virtual GPUs, some drivers)
    power_limit_w: float | None
    uuid: str


@dataclass(frozen=True)
class PowerSample:
    """One reading, summed over the GPUs of a server. ``t_s`` is ``time.perf_counter``.

    Clock and temperature are 0 where NVML does not tell them.
    """

    t_s: float
    energy_mj: int
    power_avg_mw: int
    power_instant_mw: int
    sm_clock_mhz: int
    temperature_c: int


def _text(told: str | bytes) -> str:
    return told if isinstance(told, str) else told.decode()


class Nvml:
    """The part of NVML that calibration needs.

    Raises
    ------
    MissingExtraError
        If the Python bindings are not installed.
    CalibrationError
        If there is no NVIDIA driver.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise MissingExtraError("nvidia-ml-py", "gpu", "reading the GPUs' power") from None
        self.lib: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as e:
            raise CalibrationError(
                f"NVML cannot be used: {e}. Calibration needs an NVIDIA GPU with its driver; "
                "check nvidia-smi"
            ) from None

    def gpus(self) -> list[Gpu]:
        """All GPUs of the host, numbered as CUDA does under CUDA_DEVICE_ORDER=PCI_BUS_ID.

        Raises
        ------
        CalibrationError
            If NVML does not tell what a GPU is.
        """
        try:
            return self._gpus()
        except self.lib.NVMLError as e:
            raise CalibrationError(f"NVML does not describe the GPUs: {e}") from None

    def _gpus(self) -> list[Gpu]:
        lib = self.lib
        found = []
        for i in range(lib.nvmlDeviceGetCount()):
            handle = lib.nvmlDeviceGetHandleByIndex(i)
            limit_mw = self._optional(lib.nvmlDeviceGetEnforcedPowerLimit, handle)
            found.append(
                Gpu(
                    index=i,
                    name=_text(lib.nvmlDeviceGetName(handle)),
                    memory_bytes=int(lib.nvmlDeviceGetMemoryInfo(handle).total),
                    capability=tuple(lib.nvmlDeviceGetCudaComputeCapability(handle)),
                    power_limit_w=limit_mw / 1e3 if limit_mw else None,
                    uuid=_text(lib.nvmlDeviceGetUUID(handle)),
                )
            )
        return found

    def driver(self) -> str:
        return _text(self.lib.nvmlSystemGetDriverVersion())

    def sample(self, handles: list[Any]) -> PowerSample:
        """Read the GPUs of one server."""
        lib = self.lib
        t_s = now()
        energy = average = instant = 0
        clocks, temperatures = [], []
        for handle in handles:
            energy += lib.nvmlDeviceGetTotalEnergyConsumption(handle)
            mean, last = self._power_mw(handle)
            average += mean
            instant += last
            clock = self._optional(lib.nvmlDeviceGetClockInfo, handle, lib.NVML_CLOCK_SM)
            heat = self._optional(lib.nvmlDeviceGetTemperature, handle, lib.NVML_TEMPERATURE_GPU)
            clocks.append(clock or 0)
            temperatures.append(heat or 0)
        return PowerSample(t_s, energy, average, instant, min(clocks), max(temperatures))

    def _optional(self, ask: Callable[..., int], *arguments: Any) -> int | None:
        """What NVML says; None where this GPU or driver does not support the question."""
        try:
            return ask(*arguments)
        except self.lib.NVMLError:
            return None

    def _power_mw(self, handle: Any) -> tuple[int, int]:
        lib = self.lib
        try:
            mean, last = lib.nvmlDeviceGetFieldValues(handle, [_FIELD_AVERAGE, _FIELD_INSTANT])
            if mean.nvmlReturn == 0 and last.nvmlReturn == 0:
                return int(mean.value.uiVal), int(last.value.uiVal)
        except lib.NVMLError:
            pass
        usage = int(lib.nvmlDeviceGetPowerUsage(handle))  # older boards: a mean over 1 s
        return usage, usage


def gpu_type_of(board: Gpu) -> GpuType:
    """The GPU type of a board, from NVML's name of it (e.g. "NVIDIA H200") and its memory.

    Raises
    ------
    CalibrationError
        If it is none that qsim knows.
    """
    name, memory = board.name, board.memory_bytes
    for g in GPUS.values():
        # whole words: a GH200 is no H200; and an A100 of 40 GB is no A100 of 80 GB
        same = re.search(rf"\b{g.nvml_name}\b", name) and not re.search(r"PCIe|NVL", name)
        if same and abs(memory / g.memory_bytes - 1) < 0.1:
            return g
    raise CalibrationError(
        f"the GPU is {name!r} with {memory / GIB:.0f} GiB; qsim knows "
        f"{', '.join(g.name for g in GPUS.values())}. "
        "Give --gpu-type to calibrate it under one of their ids"
    )


def choose_gpus(
    boards: Sequence[Gpu], wanted: Sequence[int], environment: Mapping[str, str]
) -> list[int]:
    """The GPUs to measure on, by NVML's number: the wanted ones.

    Where none is wanted, all that CUDA_VISIBLE_DEVICES leaves visible, since a job scheduler may
    have given the others to somebody else.

    Raises
    ------
    ScenarioError
        If there is no such GPU, or the chosen ones are of different kinds.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted:
        chosen = list(wanted)
    elif visible is None:
        chosen = [b.index for b in boards]
    else:
        chosen = [_number(text.strip(), boards) for text in visible.split(",") if text.strip()]
    for number in chosen:
        if not 0 <= number < len(boards):
            raise ScenarioError(f"gpus has {number}; this host has {len(boards)}, numbered from 0")
    names = sorted({boards[number].name for number in chosen})
    if len(names) > 1:
        raise ScenarioError(f"gpus are of different kinds: {', '.join(names)}; choose one kind")
    if not chosen:
        raise ScenarioError("no GPU is left: CUDA_VISIBLE_DEVICES is empty; give --gpus")
    return chosen


def _number(text: str, boards: Sequence[Gpu]) -> int:
    if text.isdecimal():
        return int(text)
    for board in boards:
        if text.startswith("GPU-") and board.uuid.startswith(text):
            return board.index
    raise ScenarioError(
        f"CUDA_VISIBLE_DEVICES has {text!r}, which is no GPU of this host; give --gpus"
    )


class PowerSampler:
    """Runs the sampling process for the GPUs of one server.

    Raises
    ------
    CalibrationError
        If the process does not start to sample; the message holds what it said.
    """

    def __init__(self, gpus: list[int], out: Path, interval_s: float = 0.025) -> None:
        self.out = out
        self.process = start(
            "qsim.calibrate.measure.power",
            f"--gpus={','.join(map(str, gpus))}",
            f"--out={out}",
            f"--interval-s={interval_s}",
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()
            self.stop()
            raise CalibrationError(
                f"power cannot be measured: {reason[-1] if reason else 'no answer'}"
            )

    def stop(self) -> None:
        """End the process; what it wrote is complete."""
        end(self.process, 30.0)


def read_samples(path: Path) -> list[PowerSample]:
    """The readings in a file written by the sampling process."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split(",")
        if len(parts) == 6:
            samples.append(PowerSample(float(parts[0]), *(int(p) for p in parts[1:])))
    return samples


def main(argv: list[str] | None = None) -> int:
    """Sample until stdin closes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--interval-s", type=float, default=0.025)
    args = parser.parse_args(argv)
    try:
        nvml = Nvml()
        handles = [nvml.lib.nvmlDeviceGetHandleByIndex(int(i)) for i in args.gpus.split(",")]
        nvml.sample(handles)
    except Exception as e:  # NVML's own errors, too: the parent prints the last line
        print(e if isinstance(e, QsimError) else f"{type(e).__name__}: {e}", file=sys.stderr)
        return 1
    stop = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    print("ready", flush=True)
    with open(args.out, "w", encoding="utf-8") as f:
        due = now()
        while not stop.is_set():
            s = nvml.sample(handles)
            f.write(
                f"{s.t_s:.6f},{s.energy_mj},{s.power_avg_mw},{s.power_instant_mw},"
                f"{s.sm_clock_mhz},{s.temperature_c}\n"
            )
            due = max(due + args.interval_s, now())
            stop.wait(max(0.0, due - now()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
