"""vLLM on a machine without a GPU: a driver library that answers nothing, and a platform made up.

vLLM's extension modules are linked with the CUDA driver, ``libcuda.so.1``. To load them a library
with the symbols that they name is enough, as long as nobody launches a kernel. It is built here
from the symbols that the installed wheel asks for, so a new release needs no new list.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["install_platform", "load_driver"]

GIB = 1 << 30
# functions of the driver have a capital behind cu; cudaMalloc, cublasCreate and the like have none
_DRIVER = re.compile(r"\bU (cu[A-Z]\w*)")
#: what torch and Triton may look up themselves
_ALWAYS = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetErrorString", "cuGetErrorName")


def load_driver() -> None:
    """Build a driver library that fails every call but loads, and load it; before vLLM.

    Raises
    ------
    RuntimeError
        If there is no vLLM, no C compiler or no nm.
    """
    if "VLLM_RECORD_DRIVER" in os.environ:  # a child process: it finds the library by itself
        return
    folder = Path(tempfile.mkdtemp(prefix="qsim-driver-"))
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    names = sorted({*_ALWAYS, *_needed()})
    lines = [f"int {name}(void) {{ return 1; }}" for name in names if name != "cuDriverGetVersion"]
    # 13.0, as the wheels are built for; it is looked at when they are loaded
    lines.append("int cuDriverGetVersion(int *version) { *version = 13000; return 0; }")
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"a C compiler (cc) is needed: {error}") from error
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    # vLLM looks at models in child processes
    path = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = str(folder) if path is None else f"{folder}:{path}"
    os.environ["VLLM_RECORD_DRIVER"] = str(library)


def _needed() -> list[str]:
    package = Path(sysconfig.get_path("platlib")) / "vllm"
    modules = sorted(package.rglob("*.so"))
    if not modules:
        raise RuntimeError(f"no vLLM in {package}: run this with the Python that has it")
    try:
        found = subprocess.run(
            ["nm", "-D", "--undefined-only", *modules], check=False, capture_output=True, text=True
        )
    except OSError as error:
        raise RuntimeError(f"nm (of binutils) is needed: {error}") from error
    return _DRIVER.findall(found.stdout)


def install_platform(name: str = "NVIDIA H200", memory_gib: int = 139) -> None:
    """Let vLLM believe that it runs on one such GPU of the Hopper generation."""
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    def pair(capability: Any) -> tuple[int, int]:
        return capability if isinstance(capability, tuple) else divmod(capability, 10)

    class FakeGpu(NonNvmlCudaPlatform):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(9, 0)

        @classmethod
        def has_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
            return pair(capability) <= (9, 0)

        @classmethod
        def is_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
            return pair(capability) == (9, 0)

        @classmethod
        def is_device_capability_family(cls, capability: int, device_id: int = 0) -> bool:
            return capability // 10 == 9

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return name

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return memory_gib * GIB

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 132

        @classmethod
        def device_count(cls) -> int:
            return 1

    vllm.platforms._current_platform = FakeGpu()
