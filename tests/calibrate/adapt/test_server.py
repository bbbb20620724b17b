"""``qsim calibrate adapt`` against the stub of a running server."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from qsim.calibrate.adapt.benchmark import read_benchmark
from qsim.calibrate.adapt.power import EnergyMeter, Reading, dcgm_reader, energy_between
from qsim.calibrate.adapt.server import describe, split_url
from qsim.calibrate.adapt.session import WARM_UP, Plan, send_loads
from qsim.calibrate.measure.server import Server, free_port
from qsim.errors import CalibrationError, ScenarioError
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Adapted, Profile
from tests.calibrate.stub import MARK, NVML, STUB, none_left, stub_environment

ROOT = Path(__file__).parents[3]
#: ``qsim`` with fits of a seventh of the work: what they find is tested elsewhere
QUICK = """
from qsim.calibrate.adapt import adapting, fitting
fitting._DRAWS, fitting.fit_factors.__kwdefaults__["rounds"], adapting._LEFT_OUT_ROUNDS = 20, 1, 1
from qsim.cli import main
main(prog_name="qsim")
"""
LOADS = ["single", "ladder", "moderate", "full"]
STEPS = ["--seconds", "5", "--most-error", "1e6"]


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    env = stub_environment(STUB_START_S="0", **environment)
    server = Server([*STUB, str(folder)], env, folder / "server.log")
    server.start()
    try:
        server.wait_healthy(600.0)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub's KV cache and version."""
    shipped = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8", "0.24")
    path = tmp_path_factory.mktemp("profile") / "p.json"
    replace(shipped, memory=replace(shipped.memory, num_gpu_blocks=20001)).save(path)
    return path


def adapt(
    server: Server | str | None, profile: object, out: Path, *more: str, **env: str
) -> tuple[int, str, str]:
    url = f"http://127.0.0.1:{server.port}" if isinstance(server, Server) else server
    where = [] if url is None else ["--base-url", url]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, "calibrate", "adapt", *where, "--profile",
         str(profile), "--out", str(out), *more],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{NVML}", **env},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def done(code: int, err: str, out: Path) -> Adapted | None:
    """What every run against the stub must leave, whose times are those of a busy machine.

    It is not the profile's server, so its loads may tell so little of each other that nothing is
    written: that is said then. What a fit finds is tested on simulated machines
    (``test_fitting``).
    """
    assert "Traceback" not in err
    for load in LOADS:
        assert f"\n  {load}: " in err
    if code == 4:
        assert "by factors fitted without it" in err
        assert not out.exists()
        return None
    assert code == 0, err
    adapted = Profile.load(out).adapted
    assert adapted is not None
    assert adapted.loads == LOADS
    return adapted


def test_a_running_server_is_adapted_to(tmp_path: Path, profile: Path) -> None:
    out, kept = tmp_path / "a.json", tmp_path / "kept"
    with serving(tmp_path / "m") as server:
        code, text, err = adapt(server, profile, out, *STEPS, "--keep-loads", str(kept))
    assert "no metrics" not in err
    loads = {p.stem: read_benchmark(p) for p in kept.iterdir()}
    assert {k: len(v) >= 20 for k, v in loads.items()} == dict.fromkeys(LOADS, True)
    if done(code, err, out) is not None:
        assert "decode steps (memory)" in text


def test_no_prompt_is_sent_twice(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    profile = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8", "0.24")
    plan = Plan("one", "", [{"prompt": [40, 40], "output": [2, 2], "concurrency": 1}], 1.0)
    with serving(tmp_path / "m", STUB_PROMPTS=str(sent)) as server:
        one = describe(f"http://127.0.0.1:{server.port}")
        for _ in range(2):
            send_loads(one, profile, [plan], None, lambda text: None)
    prompts = sent.read_text().splitlines()
    assert len(prompts) == 2 * (2 + WARM_UP + 2)  # the first of each run warm the server up
    assert len({p[:40] for p in prompts}) == len(prompts)


def test_without_power_and_metrics_the_loss_is_stated(tmp_path: Path, profile: Path) -> None:
    out = tmp_path / "a.json"
    with serving(tmp_path / "m", STUB_NO_METRICS="1") as server:
        code, _, err = adapt(server, profile, out, *STEPS, FAKE_GPUS="0")
    assert "NVML cannot be used" in err
    assert "going on without power" in err
    adapted = done(code, err, out)
    if adapted is not None:
        assert any("no metrics" in n for n in adapted.notes)
        assert any("no power was measured" in n for n in adapted.notes)


def info(sizes: object) -> str:
    """What ``/server_info?config_format=json`` says in vLLM's development mode."""
    return json.dumps({"vllm_config": {"compilation_config": {"cudagraph_capture_sizes": sizes}}})


WRONG = [
    ({"STUB_SERVER_INFO": info([1, 2, 4, 8])}, "captured CUDA graphs of up to 8 tokens"),
    ({"STUB_SERVER_INFO": info([])}, "captured CUDA graphs of up to 0 tokens"),
    ({"STUB_VERSION": "0.31.0"}, "runs vLLM 0.31.0"),
    ({"STUB_CACHE_DTYPE": "fp8_e4m3"}, "KV cache is of type 'fp8_e4m3'"),
    ({"STUB_ROOT": "Qwen/Qwen2.5-14B-Instruct"}, "give the profile of qwen2.5-14b"),
    ({"STUB_BUSY": "3"}, "busy with 3 requests of others"),
    ({"STUB_OTHERS": "500"}, "500 requests of others meanwhile"),
    ({"STUB_MODE": "crash-later"}, "failed"),
]


@pytest.mark.parametrize(("environment", "message"), WRONG)
def test_a_wrong_server_is_refused(
    tmp_path: Path, profile: Path, environment: dict[str, str], message: str
) -> None:
    out = tmp_path / "a.json"
    with serving(tmp_path / "m", **environment) as server:
        code, _, err = adapt(server, profile, out, *STEPS)
    assert code == 4
    assert message in err
    assert "Traceback" not in err
    assert not out.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


@pytest.mark.parametrize(
    ("told", "sizes"),
    [(info([512, 1, 2]), (1, 2, 512)), (info(None), None), (info(["1"]), None), ("{", None),
     ('{"vllm_config": "text"}', None), (None, None)],
)  # fmt: skip
def test_cuda_graphs_are_known_where_the_server_tells_them(
    tmp_path: Path, told: str | None, sizes: tuple[int, ...] | None
) -> None:
    environment = {} if told is None else {"STUB_SERVER_INFO": told}
    with serving(tmp_path / "m", **environment) as server:
        assert describe(f"http://127.0.0.1:{server.port}").graph_sizes == sizes


def test_a_server_is_started_and_ended(tmp_path: Path, profile: Path) -> None:
    mark = "adapt-serve"
    whole = Profile.load(profile)
    graphs = replace(whole, latency=replace(whole.latency, graph_sizes=[1, 2, 4]))
    mine, out = tmp_path / "mine.json", tmp_path / "a.json"
    graphs.save(mine)
    env = {MARK: mark, "STUB_START_S": "0"}
    serve = ["--serve", "--serve-command", shlex.join(STUB)]
    code, _, err = adapt(None, mine, out, *STEPS, *serve, **env)
    assert "starting the server" in err
    done(code, err, out)
    assert none_left(mark) == []
    out.unlink(missing_ok=True)
    # the profile's graphs are not those that were captured
    code, _, err = adapt(None, profile, out, *STEPS, *serve, **env)
    assert code == 4
    assert "captured CUDA graphs of up to 4 tokens" in err
    code, _, err = adapt(None, mine, out, *STEPS, *serve, STUB_MODE="oom", **env)
    assert code == 4
    assert "out of GPU memory" in err
    code, _, err = adapt(None, mine, out, *STEPS, *serve, "--gpus", "0,1", **env)
    assert code == 4
    assert "2 GPUs are named" in err
    assert none_left(mark) == []
    assert not out.exists()


@pytest.mark.parametrize(
    "more", [("--serve", "--base-url", "http://x:1"), ("--model", "x"), ("--serve-command", "x")]
)
def test_options_of_starting_a_server(tmp_path: Path, profile: Path, more: tuple[str, ...]) -> None:
    code, _, err = adapt(None, profile, tmp_path / "a.json", *more)
    assert code == 2
    assert "--serve" in err


def test_another_kv_cache_and_other_speeds_are_refused(tmp_path: Path, profile: Path) -> None:
    out = tmp_path / "a.json"
    with serving(tmp_path / "m") as server:
        code, _, err = adapt(server, "h200_sxm/llama-3.1-8b/fp8-w8a8", out, *STEPS)
        assert (code, out.exists()) == (4, False)
        assert "room for 320,016 tokens" in err
        code, _, err = adapt(server, profile, out, "--seconds", "5", "--most-error", "0.001")
        assert (code, out.exists()) == (4, False)
        assert "this is not the server of" in err


def test_nobody_answers(tmp_path: Path, profile: Path) -> None:
    code, _, err = adapt(f"http://127.0.0.1:{free_port()}", profile, tmp_path / "a.json")
    assert code == 4
    assert "/v1/models does not answer" in err
    code, _, err = adapt("ftp://x", profile, tmp_path / "a.json")
    assert code == 2
    assert "--base-url is 'ftp://x'" in err


@pytest.mark.parametrize("url", ["", "localhost:8000", "http://", "http://h:99999", "http://h/x"])
def test_only_the_url_of_a_server(url: str) -> None:
    with pytest.raises(ScenarioError, match="--base-url"):
        split_url(url)


class _Http(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        text = self.answers.get(self.path)
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def answering(answers: dict[str, str]) -> Iterator[str]:
    handler = type("Http", (_Http,), {"answers": answers})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": []}', '{"data": [3]}', "[" * 5000])
def test_a_server_that_is_none(text: str) -> None:
    with (
        answering({"/v1/models": text}) as url,
        pytest.raises(CalibrationError, match="/v1/models"),
    ):
        describe(url)


def test_energy_by_dcgm() -> None:
    name = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    answers = {"/metrics": f'# HELP\n{name}{{gpu="0",UUID="a"}} 5000\n{name}{{gpu="1"}} 9000\n',
               "/damaged": f'{name}{{gpu="0"}} 50x\n'}  # fmt: skip
    with answering(answers) as url:
        assert dcgm_reader(f"{url}/metrics", [0])() == 5.0
        assert dcgm_reader(f"{url}/metrics", [0, 1])() == 14.0
        with pytest.raises(CalibrationError, match="of GPU 2"):
            dcgm_reader(f"{url}/metrics", [2])
        with pytest.raises(CalibrationError, match="does not answer"):
            dcgm_reader(f"{url}/none", [0])
        with pytest.raises(CalibrationError, match="of GPU 0"):
            dcgm_reader(f"{url}/damaged", [0])


def readings(watts: float, *, every_s: float = 0.1, takes_s: float = 0.0) -> list[Reading]:
    """Of a counter, over 10 s; each is taken in the middle of asking for it."""
    asked = np.arange(0.0, 10.0, every_s)
    return [(t, t + takes_s, watts * (t + takes_s / 2)) for t in asked.tolist()]


def test_energy_is_told_only_where_it_was_read() -> None:
    often = readings(200.0)
    assert energy_between(often, 2.03, 7.08) == pytest.approx(200 * 5.05)
    assert energy_between(often, 2.0, 2.6) == pytest.approx(200 * 0.6)
    assert energy_between(often, -10.0, 7.0) is None
    assert energy_between(often, 2.0, 17.0) is None
    assert energy_between(often[:20] + often[60:], 1.0, 8.0) is None  # not read for 4 s
    assert energy_between(often[:1], 0.0, 0.1) is None


def test_energy_of_a_load_that_is_too_short_to_be_told_is_not() -> None:
    assert energy_between(readings(200.0), 2.0, 2.2) is None
    assert energy_between(readings(200.0, every_s=0.9), 2.0, 4.0) is None
    slow = readings(200.0, every_s=0.9, takes_s=0.8)  # when it was counted is known within 0.8 s
    assert energy_between(slow, 2.0, 6.0) is None
    assert energy_between(readings(200.0, every_s=0.9), 1.0, 9.0) == pytest.approx(1600.0)


def stepping(moves_every_s: float, *, every_s: float = 0.02) -> list[Reading]:
    """Of a counter that moves seldom: 100 W, but 500 W from the 3rd to the 6th second of 10."""
    asked = np.arange(0.0, 10.0, every_s)
    moved = np.floor(asked / moves_every_s + 1e-9) * moves_every_s
    joules = 100.0 * moved + 400.0 * np.clip(moved - 3.0, 0.0, 3.0)
    return [(t, t + 1e-3, j) for t, j in zip(asked.tolist(), joules.tolist(), strict=True)]


def test_a_counter_is_read_when_it_moves() -> None:
    # what it says between two moves is of the first of them: 40 J less at the end of this load
    assert energy_between(stepping(0.1), 3.0, 6.0) == pytest.approx(1500, abs=8)
    assert energy_between(stepping(0.1), 3.05, 5.95) == pytest.approx(1450, abs=8)
    # an exporter that asks every 3 s: whose energy a load's is cannot be told
    assert energy_between(stepping(3.0), 3.0, 6.0) is None
    still = [(t, t, 5.0) for t in np.arange(0.0, 10.0, 0.1).tolist()]
    assert energy_between(still, 3.0, 6.0) is None


def test_a_meter_waits_for_the_end_of_the_load() -> None:
    begin = time.perf_counter()

    def read() -> float:  # 1,000 W, told every 0.1 s
        return 100.0 * math.floor((time.perf_counter() - begin) / 0.1)

    meter = EnergyMeter(read)
    try:
        time.sleep(0.7)
        end = time.perf_counter()
        told = meter.joules(begin + 0.2, end)
    finally:
        meter.stop()
    # None where the machine was too busy to read in time; else what was drawn up to the end
    assert told is None or told == pytest.approx(1000 * (end - begin - 0.2), rel=0.25)


def test_a_meter_reads_until_it_is_stopped() -> None:
    seen = threading.Event()
    count = itertools.count()

    def read() -> float:
        if (n := next(count)) == 3:
            seen.set()
        if n == 1:
            raise CalibrationError("not now")
        return float(n)

    meter = EnergyMeter(read)
    assert seen.wait(120.0)
    meter.stop()
    told = next(count)
    time.sleep(0.3)
    assert next(count) == told + 1
