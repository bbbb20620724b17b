"""The step recorder: what it writes inside vLLM's processes, how it is joined, what it costs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qsim.calibrate.measure.tidy import recorder_cost
from qsim.calibrate.recorder import install, plugin, read_hooks, read_steps
from qsim.calibrate.recorder.read import StepRow
from qsim.errors import CalibrationError
from tests.calibrate.stub import HERE, stub_environment

FAKES = HERE / "fakes"


def output(
    new: list[tuple[str, int, int]] = (),  # type: ignore[assignment]
    cached: list[tuple[str, int, int, int]] = (),  # type: ignore[assignment]
) -> SimpleNamespace:
    """A SchedulerOutput: new requests (id, tokens, computed), others with output tokens too."""
    tokens = {i: n for i, n, *_ in [*new, *cached]}
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=i, num_computed_tokens=c) for i, _, c in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[i for i, *_ in cached],
            num_computed_tokens=[c for _, _, c, _ in cached],
            num_output_tokens=[o for *_, o in cached],
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
    )


@pytest.mark.parametrize(
    ("step", "decodes", "context", "longest", "chunks"),
    [
        (output(), 0, 0, 0, []),
        (output(new=[("a", 70, 0)]), 0, 0, 0, [(70, 0)]),
        (output(cached=[("a", 1, 70, 1), ("b", 1, 9, 3)]), 2, 79, 70, []),
        # a prompt in its second chunk, a decode, and a prompt with a cached prefix
        (
            output(new=[("c", 30, 16)], cached=[("a", 512, 512, 0), ("b", 1, 9, 3)]),
            1, 9, 9, [(512, 512), (30, 16)],
        ),
        # the last chunk may have one token only
        (output(cached=[("a", 1, 1024, 0), ("b", 1, 9, 3)]), 1, 9, 9, [(1, 1024)]),
        # preempted and computed again, with the tokens that it had already put out
        (output(cached=[("a", 200, 0, 40), ("b", 1, 9, 3)]), 1, 9, 9, [(200, 0)]),
    ],
)  # fmt: skip
def test_composition(
    step: SimpleNamespace, decodes: int, context: int, longest: int, chunks: list[tuple[int, int]]
) -> None:
    assert plugin.composition(step) == (decodes, context, longest, chunks)


class Clock:
    """Each look at it takes a microsecond, whatever else the machine does."""

    time_s = 100.0

    def __call__(self) -> float:
        Clock.time_s += 1e-6
        return Clock.time_s


class Event:
    """A CUDA event on a GPU whose steps take 5 ms each."""

    clock_ms = 0.0

    def record(self) -> None:
        self.at = Event.clock_ms

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


class Rig:
    """An engine and two workers in other processes, as with tensor parallelism."""

    def __init__(self, folder: Path) -> None:
        def writer(kind: str, magic: bytes) -> plugin.Writer:
            return plugin.Writer(str(folder), kind, magic)

        engine = self.engine = plugin.EngineRecorder(writer("engine", plugin.ENGINE_MAGIC))
        self.workers = [
            plugin.WorkerRecorder(writer(f"worker-{i}", plugin.WORKER_MAGIC), Event, Event.record)
            for i in (0, 1)
        ]
        self.scheduler = SimpleNamespace(
            running=["a"], waiting=["b"], kv_cache_manager=SimpleNamespace(usage=0.5)
        )
        self.schedule = engine.wrap_schedule(lambda s, step: step)
        self.update = engine.wrap_update(lambda s, o: None)
        self.launch = engine.wrap_execute(lambda _, o: self.send(o))
        self.sample = engine.wrap_sample(lambda _: [f(w) for f, w in self.samples])
        ranks = [SimpleNamespace(rank=i) for i in (0, 1)]
        pairs = list(zip(self.workers, ranks, strict=True))
        self.executes = [(r.wrap_execute(self.gpu), w) for r, w in pairs]
        self.samples = [(r.wrap_sample(lambda w: None), w) for r, w in pairs]

    def gpu(self, worker: Any, step: Any) -> None:
        self.workers[worker.rank].seen_mode("FULL", 8)
        Event.clock_ms += 5.0 if worker.rank == 0 else 3.0
        Clock.time_s += 0.02

    def send(self, step: Any) -> None:
        for execute, worker in self.executes:  # over a message queue: pickled
            execute(worker, pickle.loads(pickle.dumps(step)))

    def flush(self) -> None:
        for r in (self.engine, *self.workers):
            r.writer.flush()


def test_both_sides_of_a_step_are_joined_across_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "now", Clock())
    rig = Rig(tmp_path)
    steps = [
        output(new=[("a", 70, 0)]),
        output(cached=[("a", 1, 70, 1)]),
        output(cached=[("a", 1, 71, 2)]),
    ]
    begin = Clock.time_s
    # the next step is scheduled and launched before the last one is updated
    previous = None
    for step in steps:
        scheduled = rig.schedule(rig.scheduler, step)
        rig.launch(None, scheduled)
        rig.sample(None)
        if previous is not None:
            rig.update(rig.scheduler, previous)
        previous = scheduled
    rig.update(rig.scheduler, previous)
    rig.launch(None, output(new=[("warm-up", 9, 0)]))  # vLLM's own: not scheduled
    rig.sample(None)
    rig.schedule(rig.scheduler, output())  # nothing to do
    rig.flush()
    rows = read_steps(tmp_path)
    assert [r.step for r in rows] == [1, 2, 3]
    assert [r.chunks for r in rows] == [((70, 0),), (), ()]
    assert [r.num_decode for r in rows] == [0, 1, 1]
    assert [r.decode_context_tokens for r in rows] == [0, 70, 71]
    assert [r.decode_context_max for r in rows] == [0, 70, 71]
    for r in rows:
        assert r.gpu_ms == pytest.approx(5.0 + 3.0)  # the ranks share a clock here
        assert (r.mode, r.padded_tokens) == ("full", 8)
        assert r.worker_launch_start_s is not None
        assert r.worker_sample_end_s is not None
        assert r.launch_start_s <= r.worker_launch_start_s <= r.launch_end_s
        assert r.sample_start_s <= r.worker_sample_end_s <= r.sample_end_s
        order = [begin, r.schedule_s, r.schedule_end_s, r.launch_start_s, r.launch_end_s,
                 r.sample_start_s, r.sample_end_s, r.update_s, r.update_end_s]  # fmt: skip
        assert order == sorted(order)
        assert (r.running, r.waiting, r.kv_usage) == (1, 1, 0.5)
        # what is wrapped (20 ms in the worker, twice as much in the engine) is none of its own
        assert 0 < r.own_s < 1e-4
        assert 0 < r.worker_own_s < 1e-4
    assert rows[0].update_s > rows[1].sample_end_s
    (rank_1,) = tmp_path.glob("worker-1-*.bin")
    assert rank_1.read_bytes() == plugin.WORKER_MAGIC  # rank 0 speaks for all


def test_a_step_without_its_worker_has_no_span(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    scheduled = rig.schedule(rig.scheduler, output(new=[("a", 70, 0)]))
    rig.update(rig.scheduler, scheduled)
    rig.flush()
    (row,) = read_steps(tmp_path)
    assert row.gpu_ms is None
    assert row.mode == ""
    assert (row.launch_start_s, row.sample_end_s) == (0.0, 0.0)


def test_a_server_that_was_killed_leaves_half_a_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for _ in range(3):
        rig.update(rig.scheduler, rig.schedule(rig.scheduler, output(new=[("a", 70, 0)])))
    rig.flush()
    (path,) = tmp_path.glob("engine-*.bin")
    whole = path.read_bytes()
    for cut in (1, 5, plugin.CHUNK.size, plugin.CHUNK.size + 1, plugin.ENGINE_ROW.size):
        path.write_bytes(whole[:-cut])
        assert [r.step for r in read_steps(tmp_path)] == [1, 2]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="0 engines recorded steps"):
        read_steps(tmp_path)
    (tmp_path / "engine-1.bin").write_bytes(b"something else")
    with pytest.raises(CalibrationError, match="not written by this version"):
        read_steps(tmp_path)
    (tmp_path / "engine-2.bin").write_bytes(plugin.ENGINE_MAGIC)
    with pytest.raises(CalibrationError, match=r"2 engines .*data parallelism is not supported"):
        read_steps(tmp_path)


PROCESS = """
import multiprocessing, sys
sys.path.insert(0, {fakes!r})
multiprocessing.current_process().name = {name!r}
from vllm.plugins import load_general_plugins
load_general_plugins()
load_general_plugins()  # again does no harm
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.worker.gpu_worker import Worker
print(hasattr(MultiprocExecutor.execute_model, "qsim_wrapped"),
      hasattr(Worker.execute_model, "qsim_wrapped"))
"""


@pytest.mark.parametrize(
    ("name", "tp", "patched"),
    [
        ("EngineCore", 1, "True True"),
        ("EngineCore_DP0", 2, "True False"),
        ("VllmWorker-0", 2, "False True"),
        ("APIServer", 1, "False False"),
    ],
)
def test_which_process_is_patched(tmp_path: Path, name: str, tp: int, patched: str) -> None:
    env = install(tmp_path, stub_environment(), tensor_parallel_size=tp)
    code = PROCESS.format(fakes=str(FAKES), name=name)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == patched, done.stderr
    notes = [json.loads(p.read_text()) for p in (tmp_path / "rows").glob("hooks-*.json")]
    assert [n["process"] for n in notes] == ([] if patched == "False False" else [name])
    assert all(n["hooks"]["status"] == "ok" for n in notes)


LOADING = """
import multiprocessing, sys
sys.path.insert(0, {fakes!r})
multiprocessing.current_process().name = "VllmWorker-0"
import qsim_vllm_recorder
filled = []
def fill(layer, torch, bits):
    filled.append((layer.name, bits, layer.initialized))
qsim_vllm_recorder.fill_dummy = fill
from vllm.plugins import load_general_plugins
load_general_plugins()
load_general_plugins()
from types import SimpleNamespace
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
layers = [SimpleNamespace(name=n) for n in "ab"]
DummyModelLoader().load_weights(SimpleNamespace(modules=lambda: layers), None)
print(filled)
"""


@pytest.mark.parametrize("version", ["0.24.0", "0.30.0", "0.31.0", "0.33.0"])
def test_dummy_weights_are_drawn_once_and_last_in_every_version(
    tmp_path: Path, version: str
) -> None:
    env = install(
        tmp_path,
        stub_environment(FAKE_VLLM_VERSION=version),
        tensor_parallel_size=2,
        random_dummy_bits=True,
        weight_bits=4,
    )
    code = LOADING.format(fakes=str(FAKES))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[('a', 4, True), ('b', 4, True)]", done.stderr
    (notes,) = (json.loads(p.read_text()) for p in (tmp_path / "rows").glob("hooks-*.json"))
    assert notes["hooks"]["DummyModelLoader.load_weights"] == "ok"
    assert notes["hooks"]["status"] == "ok"


def test_install_keeps_the_environment(tmp_path: Path) -> None:
    env = install(tmp_path, {"PYTHONPATH": "/a", "VLLM_PLUGINS": "mine", "X": "1"})
    assert env["PYTHONPATH"].endswith(":/a")
    assert env["VLLM_PLUGINS"] == "mine,qsim_recorder"
    assert env["X"] == "1"
    assert env["QSIM_RANDOM_DUMMY_BITS"] == "0"
    assert "VLLM_PLUGINS" not in install(tmp_path, {})  # unset: vLLM loads all of them


def note(folder: Path, process: str, **hooks: str) -> None:
    rows = folder / "rows"
    rows.mkdir(exist_ok=True)
    data = {"process": process, "pid": 7, "hooks": hooks}
    (rows / f"hooks-{process}.json").write_text(json.dumps(data))


def test_hooks_that_did_not_take_hold(tmp_path: Path) -> None:
    engine = {"Scheduler.schedule": "ok", "status": "ok"}
    worker = {"Worker.execute_model": "ok", "status": "ok"}
    with pytest.raises(CalibrationError, match=r"not loaded .*VLLM_PLUGINS .*vLLM >= 0.24"):
        read_hooks(tmp_path)
    note(tmp_path, "EngineCore", **engine)
    with pytest.raises(CalibrationError, match="not loaded by the server's GPU worker"):
        read_hooks(tmp_path)
    note(tmp_path, "VllmWorker", **worker)
    assert len(read_hooks(tmp_path)) == 2
    note(tmp_path, "VllmWorker", **worker, **{"Worker.sample_tokens": "missing"})
    with pytest.raises(CalibrationError, match=r"VllmWorker: not found .*Worker.sample_tokens"):
        read_hooks(tmp_path)
    note(tmp_path, "VllmWorker", **{**worker, "status": "failed: Traceback, boom"})
    with pytest.raises(CalibrationError, match=r"process VllmWorker: failed: .*boom"):
        read_hooks(tmp_path)


def step(gpu_ms: float | None, host_ms: float, own_us: float, worker_own_us: float) -> StepRow:
    part = host_ms / 1e3 / 4  # schedule, launch, sample, update
    return StepRow(
        1, 0.0, part, 1.0, 1.0 + part, 1.0 + part, 1.0 + 2 * part, 2.0, 2.0 + part,
        1, 10, 10, 1, 0, 0.1, own_us / 1e6, (), gpu_ms, worker_own_s=worker_own_us / 1e6,
    )  # fmt: skip


def test_the_recorder_s_cost_is_its_share_of_the_longer_side() -> None:
    # 10 ms on the GPU; 4 ms on the host under a short kernel; 0.1 ms of recorder in both
    cost = recorder_cost([step(10.0, 4.0, 60, 40), step(1.0, 4.0, 60, 40)])
    assert cost["mean_us_per_step"] == pytest.approx(100)
    assert cost["share_of_step_time"] == pytest.approx(200e-6 / 14e-3, rel=1e-4)
    cost = recorder_cost([step(None, 4.0, 40, 0)])
    assert cost["share_of_step_time"] == pytest.approx(40e-6 / 4e-3, rel=1e-4)
    assert recorder_cost([]) == {
        "mean_us_per_step": 0.0, "share_of_step_time": 0.0, "by_mode": {},
    }  # fmt: skip


def test_a_full_launch_queue_is_not_the_recorder_s_median() -> None:
    quick = [replace(step(10.0, 4.0, 20, 10), mode="none") for _ in range(3)]
    blocked = replace(step(10.0, 4.0, 20, 4000), mode="none")
    decode = replace(step(4.0, 1.0, 15, 5), mode="full")
    modes = recorder_cost([*quick, blocked, decode])["by_mode"]
    assert modes["none"] == {"steps": 4, "mean_us": 1027.5, "median_us": 30.0}
    assert modes["full"] == {"steps": 1, "mean_us": 20.0, "median_us": 20.0}


def test_stream_objects_are_kept() -> None:
    made: list[int] = []
    current = [7]

    def stream() -> str:
        made.append(current[0])
        return f"stream {current[0]}"

    torch = SimpleNamespace(
        _C=SimpleNamespace(_cuda_getCurrentRawStream=lambda device: current[0] + device),
        cuda=SimpleNamespace(current_device=lambda: 0, current_stream=stream),
    )
    record = plugin.on_current_stream(torch)
    seen: list[Any] = []
    event = SimpleNamespace(record=lambda *a: seen.append(a))
    for now in (7, 7, 9, 7, 9):
        current[0] = now
        record(event)
    assert seen == [("stream 7",), ("stream 7",), ("stream 9",), ("stream 7",), ("stream 9",)]
    assert made == [7, 9]
    plugin.on_current_stream(SimpleNamespace())(event)  # a torch without that call
    assert seen[-1] == ()


def real_torch() -> Any:
    """PyTorch, if it is installed; the stand-in does not count."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch, "empty"):
        pytest.skip("the stand-in for torch was imported before")
    return torch


def filled(bits: int = 0, **parameters: Any) -> dict[str, Any]:
    torch = real_torch()

    class Layer(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            for name, value in parameters.items():
                self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            self.register_buffer("table", torch.zeros(4), persistent=False)

    layer = Layer()
    with torch.no_grad():
        plugin.fill_dummy(layer, torch, bits)
    assert (layer.table == 0).all()  # computed by the model, not loaded
    return {n: p.data for n, p in layer.named_parameters()}


def nibbles(tensor: Any, torch: Any) -> Any:
    raw = tensor.view(torch.uint8).view(-1).int()
    return torch.cat([raw & 15, raw >> 4]).float()


def test_integer_weights_are_drawn_like_those_of_a_checkpoint() -> None:
    torch = real_torch()
    four = filled(
        4,
        qweight=torch.zeros(64, 64, dtype=torch.int32),
        qzeros=torch.zeros(64, 64, dtype=torch.int32),
    )
    weights, zeros = nibbles(four["qweight"], torch), nibbles(four["qzeros"], torch)
    assert abs(float(weights.mean()) - 8) < 0.1
    assert 2.5 < float(weights.std()) < 2.9
    assert int(weights.min()) == 0
    assert int(weights.max()) == 15
    assert 0.7 < float(zeros.std()) < 1.0

    eight = filled(
        8,
        qweight=torch.zeros(64, 64, dtype=torch.int32),
        weight=torch.zeros(64, 64, dtype=torch.int8),
    )
    stored = eight["qweight"].view(torch.uint8).float()
    assert abs(float(stored.mean()) - 128) < 2
    assert abs(float(eight["weight"].float().mean())) < 2
    for values in (stored, eight["weight"].float()):
        assert 32 < float(values.std()) < 37


def test_codes_of_other_formats_get_random_bits() -> None:
    torch = real_torch()
    found = filled(
        qweight=torch.zeros(64, 64, dtype=torch.int32),
        weight=torch.zeros(64, 64, dtype=torch.int8),
        g_idx=torch.arange(64, dtype=torch.int32),
    )
    for name, bits in (("qweight", 32), ("weight", 8)):
        raw = found[name].view(torch.uint8).int()
        ones = sum(int((raw >> b & 1).sum()) for b in range(8)) / raw.numel() / 8
        assert 0.48 < ones < 0.52, (name, bits)
    assert (found["g_idx"] == torch.arange(64)).all()


def test_fp8_weights_are_spread_and_finite() -> None:
    torch = real_torch()
    values = filled(weight=torch.zeros(256, 64, dtype=torch.float8_e4m3fn))["weight"].float()
    assert torch.isfinite(values).all()
    assert (values == 0).float().mean() < 0.01  # vLLM's own dummies are nearly all zeros
    assert 80 < float(values.std()) < 120


def test_scales_are_positive() -> None:
    torch = real_torch()
    found = filled(
        weight_scale=torch.full((8,), -1e-3),
        weight_global_scale=torch.zeros(1),
        mx_scale=torch.zeros(8, dtype=torch.uint8),
    )
    assert (found["weight_scale"] > 0).all()
    assert float(found["weight_global_scale"]) == 30.0
    assert ((found["mx_scale"] >= 116) & (found["mx_scale"] <= 122)).all()


def test_the_plugin_imports_neither_qsim_nor_torch_by_itself() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(plugin.__file__).parent)!r}); import plugin"
    code += "; print('torch' in sys.modules, 'qsim' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_turn_begins_when_the_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [50 << 30, 9 << 30, 1 << 20]  # the server before gives it back in parts
    asked: list[int] = []

    def memory(index: int) -> SimpleNamespace:
        asked.append(index)
        return SimpleNamespace(used=used.pop(0) if index == 3 else 0)

    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=int, nvmlDeviceGetMemoryInfo=memory
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    monkeypatch.setenv("QSIM_GPU_LOCKS", f"{tmp_path / 'b'}:{tmp_path / 'a'}")
    notes: dict[str, str] = {}
    plugin.wait_for_turn(notes.__setitem__)
    assert asked == [1, 3] * 3
    assert float(notes["waited_for_gpus_s"]) >= 0.4
    held = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    for name in "ab":  # another process cannot have it now
        done = subprocess.run([sys.executable, "-c", held, tmp_path / name], capture_output=True)
        assert b"BlockingIOError" in done.stderr
