"""NVML: which GPUs there are, what they draw, and what happens without it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from qsim.calibrate.measure.power import Nvml, PowerSampler, choose_gpus, gpu_type_of, read_samples
from qsim.catalog.gpus import GPUS, gpu_type
from qsim.errors import CalibrationError, MissingExtraError, ScenarioError
from tests.calibrate.stub import NVML


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The stand-in, in this process and in its children."""
    monkeypatch.setenv("PYTHONPATH", str(NVML))
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.syspath_prepend(str(NVML))
    sys.modules.pop("pynvml", None)
    yield monkeypatch
    sys.modules.pop("pynvml", None)


def test_the_gpus_of_a_host(nvml: pytest.MonkeyPatch) -> None:
    found = Nvml().gpus()
    assert [g.index for g in found] == [0, 1]
    assert found[1].uuid == "GPU-1"
    assert found[0].power_limit_w == 700.0
    assert found[0].capability == (9, 0)
    assert gpu_type_of(found[0]).id == "h200_sxm"
    assert Nvml().driver() == "580.0"


def test_what_nvml_does_not_support(nvml: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml.setenv("FAKE_UNSUPPORTED", "limit,clock,temperature")
    assert [g.power_limit_w for g in Nvml().gpus()] == [None, None]
    sample([0], tmp_path / "x.csv", 2)
    assert {(s.sm_clock_mhz, s.temperature_c) for s in read_samples(tmp_path / "x.csv")} == {(0, 0)}
    nvml.setenv("FAKE_UNSUPPORTED", "uuid")
    with pytest.raises(CalibrationError, match="NVML does not describe the GPUs: Not Supported"):
        Nvml().gpus()


def sample(gpus: list[int], path: Path, count: int) -> tuple[float, float]:
    """At least ``count`` readings; when sampling began and ended."""
    begin_s = time.perf_counter()
    sampler = PowerSampler(gpus, path, interval_s=0.01)
    while len(read_samples(path) if path.exists() else []) < count:
        time.sleep(0.05)
    sampler.stop()
    return begin_s, time.perf_counter()


def test_several_gpus_are_summed(nvml: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin_s, end_s = sample([0, 1], tmp_path / "both.csv", 60)
    sample([1], tmp_path / "one.csv", 1)
    both, one = read_samples(tmp_path / "both.csv"), read_samples(tmp_path / "one.csv")
    assert all(a.t_s < b.t_s for a, b in pairwise(both))
    assert begin_s < both[0].t_s < both[-1].t_s < end_s  # the clock of this process
    assert {(s.power_avg_mw, s.power_instant_mw) for s in both} == {(200_000, 200_000)}
    assert {(s.power_avg_mw, s.power_instant_mw) for s in one} == {(100_000, 100_000)}
    assert {(s.sm_clock_mhz, s.temperature_c) for s in both} == {(1979, 41)}  # slowest, hottest
    # two GPUs of 100 W, each read between its time and that of the next reading
    for a, b in pairwise(both):
        assert 200e3 * a.t_s - 3 <= a.energy_mj <= 200e3 * b.t_s + 1


def test_half_a_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1.5,10,20,30,1980,40\n1.6,11,2")
    assert [s.t_s for s in read_samples(tmp_path / "x")] == [1.5]


def test_no_driver(nvml: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml.setenv("FAKE_GPUS", "0")
    with pytest.raises(CalibrationError, match=r"NVML Shared Library Not Found.*nvidia-smi"):
        Nvml()
    with pytest.raises(CalibrationError, match=r"power cannot be measured: NVML cannot be used: "):
        PowerSampler([0], tmp_path / "x")


def test_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"nvidia-ml-py.*qsim\[gpu\]"):
        Nvml()


@dataclass(frozen=True)
class Board:
    index: int
    name: str = "NVIDIA H200"
    memory_bytes: int = 150_754_820_096
    uuid: str = ""


GB = 10**9


@pytest.mark.parametrize(
    ("name", "memory", "gpu"),
    [
        ("NVIDIA H200", 150_754_820_096, "h200_sxm"),
        ("NVIDIA H100 80GB HBM3", 85_520_809_984, "h100_sxm"),
        ("NVIDIA A100-SXM4-80GB", 85_899_345_920, "a100_sxm"),
        ("NVIDIA A100-SXM4-40GB", 42_949_672_960, None),
        ("NVIDIA A100 80GB PCIe", 85_899_345_920, None),
        ("NVIDIA GH200 480GB", 102_005_473_280, None),
        ("NVIDIA H200 NVL", 150_754_820_096, None),
        ("NVIDIA H100 NVL", 100_000_000_000, None),
        ("NVIDIA B200", 192 * GB, None),
        ("NVIDIA GeForce RTX 4090", 24 * GB, None),
    ],
)
def test_the_type_of_a_board(name: str, memory: int, gpu: str | None) -> None:
    board = Board(0, name, memory)
    if gpu is not None:
        assert gpu_type_of(board) is GPUS[gpu]
    else:
        with pytest.raises(CalibrationError, match=r"H200 SXM.*--gpu-type"):
            gpu_type_of(board)


def test_an_unknown_type() -> None:
    with pytest.raises(ScenarioError, match="gpu is 'h300'; must be one of h200_sxm"):
        gpu_type("h300")


BOARDS = [Board(i, uuid=f"GPU-{i}abc") for i in range(4)]


@pytest.mark.parametrize(
    ("wanted", "visible", "chosen"),
    [
        ([], None, [0, 1, 2, 3]),
        ([2, 1], None, [2, 1]),
        ([], "1,3", [1, 3]),
        ([], "GPU-2a", [2]),
        ([0], "1,3", [0]),  # the user's word counts
    ],
)
def test_which_gpus_are_used(wanted: list[int], visible: str | None, chosen: list[int]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_gpus(BOARDS, wanted, environment) == chosen


@pytest.mark.parametrize(
    ("wanted", "visible", "words"),
    [
        ([4], None, "gpus has 4; this host has 4"),
        ([-1], None, "gpus has -1"),
        ([], "", "CUDA_VISIBLE_DEVICES is empty"),
        ([], "MIG-1", "'MIG-1', which is no GPU of this host"),
    ],
)
def test_gpus_that_are_not_there(wanted: list[int], visible: str | None, words: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(ScenarioError, match=words):
        choose_gpus(BOARDS, wanted, environment)


def test_gpus_of_different_kinds() -> None:
    boards = [Board(0), Board(1, "NVIDIA H100 80GB HBM3")]
    with pytest.raises(ScenarioError, match="different kinds: NVIDIA H100 80GB HBM3, NVIDIA H200"):
        choose_gpus(boards, [], {})
