"""One kind of GPU that draws 100 W, as many of them as FAKE_GPUS says.

What FAKE_UNSUPPORTED names (limit, clock, temperature, uuid) it does not tell.
"""
# ruff: noqa: N802

import os
import time
from types import SimpleNamespace

NVML_CLOCK_SM = 1
NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    pass


def refuse(what):
    if what in os.environ.get("FAKE_UNSUPPORTED", "").split(","):
        raise NVMLError("Not Supported")


def nvmlInit():
    if os.environ.get("FAKE_GPUS") == "0":
        raise NVMLError("NVML Shared Library Not Found")


def nvmlDeviceGetCount():
    return int(os.environ.get("FAKE_GPUS", "2"))


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetName(handle):
    return "NVIDIA H200"


def nvmlDeviceGetUUID(handle):
    refuse("uuid")
    return f"GPU-{handle}"


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=150754820096)


def nvmlDeviceGetCudaComputeCapability(handle):
    return (9, 0)


def nvmlDeviceGetEnforcedPowerLimit(handle):
    refuse("limit")
    return 700000


def nvmlSystemGetDriverVersion():
    return "580.0"


def nvmlDeviceGetTotalEnergyConsumption(handle):
    return int(time.perf_counter() * 100e3)


def nvmlDeviceGetFieldValues(handle, fields):
    value = SimpleNamespace(uiVal=100000)
    return [SimpleNamespace(nvmlReturn=0, value=value) for _ in fields]


def nvmlDeviceGetClockInfo(handle, kind):
    refuse("clock")
    return 1980 - handle


def nvmlDeviceGetTemperature(handle, kind):
    refuse("temperature")
    return 40 + handle
