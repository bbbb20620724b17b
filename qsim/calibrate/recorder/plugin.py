"""A vLLM general plugin that records every engine step; vLLM imports it, qsim only reads it.

This file is copied to a folder on the server's PYTHONPATH and must not import qsim. vLLM loads it
in each of its processes; it patches classes in the EngineCore process and in the workers:

* ``Scheduler.schedule`` and ``update_from_output``: what a step holds, when it was scheduled and
  when its result was applied;
* ``UniProcExecutor`` and ``MultiprocExecutor``, ``execute_model`` and ``sample_tokens``: the
  launch as the engine's host thread sees it;
* ``Worker.execute_model`` and ``sample_tokens`` on rank 0: the span on the GPU between two CUDA
  events, read a few steps later so that nothing waits for the GPU;
* the loader of dummy weights: integer and FP8 weights get random values, because a GPU draws less
  power on the zeros that vLLM leaves there.

Before the EngineCore process touches a GPU, it waits for its turn there if it is told to (see
``wait_for_turn``), so that one server can start up while another still measures.

A step carries its number as an attribute of the ``SchedulerOutput``, which also reaches a worker
in another process; vLLM's own warm-up steps have none and are not recorded. All times are
``time.perf_counter``, which on Linux is one clock (CLOCK_MONOTONIC) for all processes.

The files are binary (see ``ENGINE_ROW`` and ``WORKER_ROW``), because formatting text would hold
the interpreter's lock for milliseconds. A thread writes them out a few times a second.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from importlib import import_module
from time import perf_counter as now
from typing import Any

#: step; schedule, launch, sample, update (start and end each); decodes; their context tokens, and
#: those of the longest; running; waiting; KV usage; the recorder's own time, s; number of chunks,
#: which follow
ENGINE_ROW = struct.Struct("<qddddddddIqIIIffH")
#: tokens computed in this step, tokens computed before
CHUNK = struct.Struct("<II")
#: step; launch and sample (start and end each); GPU span, ms; CUDA graph mode; padded tokens;
#: the recorder's own time, s
WORKER_ROW = struct.Struct("<qddddfbIf")
MODES = ("none", "piecewise", "full")
ENGINE_MAGIC = b"qsim-engine-2\n\0\0"
WORKER_MAGIC = b"qsim-worker-1\n\0\0"
FLUSH_INTERVAL_S = 0.2
STEP_ATTRIBUTE = "qsim_step"

Function = Callable[..., Any]


class Writer:
    """Collects rows in memory; a thread appends them to a file of this process."""

    def __init__(self, folder: str, kind: str, magic: bytes) -> None:
        self.path = os.path.join(folder, f"{kind}-{os.getpid()}.bin")
        self.lock = threading.Lock()
        self.buffer = bytearray(magic)
        self.before_flush: Function | None = None
        self.thread: threading.Thread | None = None

    def write(self, row: bytes) -> None:
        with self.lock:
            self.buffer += row
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name="qsim-recorder", daemon=True)
            self.thread.start()

    def flush(self) -> None:
        if self.before_flush is not None:
            self.before_flush()
        with self.lock:
            data, self.buffer = self.buffer, bytearray()
        if data:
            with open(self.path, "ab") as f:
                f.write(data)

    def _run(self) -> None:
        wait = threading.Event()
        while True:
            wait.wait(FLUSH_INTERVAL_S)
            try:
                self.flush()
            except Exception:
                print("qsim recorder: " + traceback.format_exc(), file=sys.stderr)
                return


class EngineRecorder:
    """The host side of a step: composition and times of schedule, launch and update."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.step = 0
        self.steps: dict[int, list[Any]] = {}
        self.launched: list[Any] | None = None

    def wrap_schedule(self, inner: Function) -> Function:
        def schedule(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            start = now()
            output = inner(scheduler, *args, **kwargs)
            end = now()
            if output.total_num_scheduled_tokens > 0:
                self.step += 1
                setattr(output, STEP_ATTRIBUTE, self.step)
                row = [start, end, 0.0, 0.0, 0.0, 0.0, *composition(output), 0.0]
                self.steps[self.step] = row
                row[-1] = now() - end
            return output

        return schedule

    def wrap_execute(self, inner: Function) -> Function:
        def execute_model(executor: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            row = self.steps.get(getattr(output, STEP_ATTRIBUTE, 0))
            if row is None:
                return inner(executor, output, *args, **kwargs)
            self.launched = row
            row[2] = now()
            result = inner(executor, output, *args, **kwargs)
            row[3] = now()
            return result

        return execute_model

    def wrap_sample(self, inner: Function) -> Function:
        def sample_tokens(executor: Any, *args: Any, **kwargs: Any) -> Any:
            row = self.launched
            if row is None:
                return inner(executor, *args, **kwargs)
            self.launched = None
            row[4] = now()
            result = inner(executor, *args, **kwargs)
            row[5] = now()
            return result

        return sample_tokens

    def wrap_update(self, inner: Function) -> Function:
        def update_from_output(scheduler: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            start = now()
            result = inner(scheduler, output, *args, **kwargs)
            end = now()
            step = getattr(output, STEP_ATTRIBUTE, 0)
            row = self.steps.pop(step, None)
            if row is not None:
                *times, decodes, context, longest, chunks, own = row
                packed = ENGINE_ROW.pack(
                    step,
                    *times,
                    start,
                    end,
                    decodes,
                    context,
                    longest,
                    len(scheduler.running),
                    len(scheduler.waiting) + len(getattr(scheduler, "skipped_waiting", ())),
                    scheduler.kv_cache_manager.usage,
                    own + (now() - end),
                    len(chunks),
                )
                self.writer.write(packed + b"".join(CHUNK.pack(n, c) for n, c in chunks))
            return result

        return update_from_output


def composition(output: Any) -> tuple[int, int, int, list[tuple[int, int]]]:
    """Decodes, their context tokens, the longest context, prefill chunks of a ``SchedulerOutput``.

    A request is in prefill while it has no output token, known or in flight; a preempted one that
    computes several tokens again counts as prefill, too.
    """
    tokens: dict[str, int] = output.num_scheduled_tokens
    new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
    chunks = [(tokens[r.req_id], r.num_computed_tokens) for r in new]
    ids, computed, outputs = cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens
    decodes, context, longest = len(ids), sum(computed), max(computed, default=0)
    in_prefill = 0 in outputs
    total = output.total_num_scheduled_tokens - sum(n for n, _ in chunks)
    if in_prefill or total != decodes:
        old = [
            (tokens[i], c)
            for i, c, o in zip(ids, computed, outputs, strict=True)
            if o == 0 or tokens[i] != 1
        ]
        decodes -= len(old)
        context -= sum(c for _, c in old)
        if old:
            rest = (
                c
                for i, c, o in zip(ids, computed, outputs, strict=True)
                if not (o == 0 or tokens[i] != 1)
            )
            longest = max(rest, default=0)
        chunks = old + chunks
    return decodes, context, longest, chunks


class WorkerRecorder:
    """The GPU side of a step: the span between two CUDA events on the compute stream."""

    def __init__(self, writer: Writer, new_event: Function, record: Function) -> None:
        self.writer = writer
        self.new_event = new_event
        self.record = record
        self.pool: list[Any] = []
        self.pending: deque[tuple[list[Any], Any, Any]] = deque()
        self.lock = threading.Lock()
        self.current: tuple[list[Any], Any] | None = None
        self.mode = (-1, 0)
        writer.before_flush = self.harvest

    def wrap_execute(self, inner: Function) -> Function:
        def execute_model(worker: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            step = getattr(output, STEP_ATTRIBUTE, 0)
            if not step or worker.rank != 0:
                self.current = None
                return inner(worker, output, *args, **kwargs)
            start = now()
            begin = self.pool.pop() if self.pool else self.new_event()
            self.record(begin)
            launch = now()
            self.mode = (-1, 0)
            row = [step, launch, 0.0, 0.0, 0.0, 0.0, launch - start]
            self.current = (row, begin)
            result = inner(worker, output, *args, **kwargs)
            row[2] = now()
            return result

        return execute_model

    def wrap_sample(self, inner: Function) -> Function:
        def sample_tokens(worker: Any, *args: Any, **kwargs: Any) -> Any:
            current, self.current = self.current, None
            if current is None:
                return inner(worker, *args, **kwargs)
            row, begin = current
            row[3] = now()
            result = inner(worker, *args, **kwargs)
            start = row[4] = now()
            end = self.pool.pop() if self.pool else self.new_event()
            self.record(end)
            row[5] = self.mode
            with self.lock:
                self.pending.append((row, begin, end))
            if len(self.pending) > 3:
                self.harvest()
            row[6] += now() - start
            return result

        return sample_tokens

    def harvest(self) -> None:
        """Write the steps whose events have passed."""
        with self.lock:
            while self.pending:
                row, begin, end = self.pending[0]
                if not end.query():
                    return
                self.pending.popleft()
                step, launch_start, launch_end, sample_start, sample_end, (mode, padded), own = row
                times = (launch_start, launch_end, sample_start, sample_end)
                span_ms = begin.elapsed_time(end)
                self.writer.write(WORKER_ROW.pack(step, *times, span_ms, mode, padded, own))
                self.pool += (begin, end)

    def seen_mode(self, mode: Any, padded_tokens: int) -> None:
        name = str(getattr(mode, "name", mode)).lower()
        self.mode = (MODES.index(name) if name in MODES else -1, int(padded_tokens))

    def wrap_init_device(self, inner: Function, note: Function) -> Function:
        """After a worker has made its model runner, see which CUDA graph a step runs with."""

        def init_device(worker: Any, *args: Any, **kwargs: Any) -> Any:
            result = inner(worker, *args, **kwargs)
            try:
                runner = type(worker.model_runner)
                module = sys.modules[runner.__module__]
                if hasattr(module, "dispatch_cg_and_sync_dp"):
                    dispatch: Any = module.dispatch_cg_and_sync_dp

                    def dispatch_v2(*a: Any, **k: Any) -> Any:
                        chosen = dispatch(*a, **k)
                        self.seen_mode(chosen[0].cg_mode, chosen[0].num_tokens)
                        return chosen

                    module.dispatch_cg_and_sync_dp = dispatch_v2  # type: ignore[attr-defined]
                elif hasattr(runner, "_determine_batch_execution_and_padding"):
                    determine = runner._determine_batch_execution_and_padding

                    def dispatch_v1(*a: Any, **k: Any) -> Any:
                        chosen = determine(*a, **k)
                        self.seen_mode(chosen[0], chosen[1].num_tokens)
                        return chosen

                    runner._determine_batch_execution_and_padding = dispatch_v1
                note("model_runner", f"{runner.__module__}.{runner.__name__}")
            except Exception as e:
                note("model_runner", f"failed: {e!r}")
            return result

        return init_device


def fill_dummy(layer: Any, torch: Any, bits: int = 0) -> None:
    """Give a layer's own dummy parameters the bits of a plausible quantized model.

    Integer weights of ``bits`` bits are normally distributed about the middle of their range, as
    those of a checkpoint are: the largest of a group (4 bits) or of a channel (8 bits) fills the
    range, and most are small. FP8 weights are normal values over the whole range without NaN, FP4
    codes uniform. Scales are positive, norms about 1 so that activations neither vanish nor
    overflow.
    """
    norm = "norm" in type(layer).__name__.lower()
    computed: set[str] = getattr(layer, "_non_persistent_buffers_set", set())  # tables, not weights
    buffers = [(n, b) for n, b in layer.named_buffers(recurse=False) if n not in computed]
    for name, parameter in [*layer.named_parameters(recurse=False), *buffers]:
        tensor = parameter.data
        if tensor.device.type == "meta" or tensor.numel() == 0:
            continue
        if any(word in name for word in ("g_idx", "weight_shape", "zero_point", "cos_sin")):
            continue
        size, floating = tensor.element_size(), torch.is_floating_point(tensor)
        scale = "scale" in name
        if floating and size == 1:
            _fill_float8(tensor, scale, torch)
        elif floating and scale:
            _fill_scale(name, tensor)
        elif floating and norm and name == "weight":
            tensor.uniform_(0.5, 1.5)
        elif not floating and size in (1, 4) and tensor.dtype != torch.bool:
            raw = tensor.view(torch.uint8) if tensor.is_contiguous() else None
            if scale and size == 1:
                tensor.random_(116, 122)  # exponents of powers of two, 2**-11 to 2**-6
            elif raw is not None and bits == 4 and size == 4:
                _fill_integers(raw, 4, _ZERO_SPREAD if "zero" in name else _SPREAD_4, torch)
            elif raw is not None and bits == 8 and (size == 4 or tensor.dtype == torch.int8):
                _fill_integers(raw, 8, 1.0 if "zero" in name else _SPREAD_8, torch)
                if tensor.dtype == torch.int8:
                    raw.bitwise_xor_(128)  # GPTQ stores the value + 128, INT8 two's complement
            elif raw is not None:
                raw.random_(0, 256)


#: Standard deviations of integer weights. The largest of 128 (of 4096) normal values lies at about
#: 2.7 (3.7) of them, and quantization puts it at 7.5 (at 127). Zero points differ by about one.
_SPREAD_4, _SPREAD_8, _ZERO_SPREAD = 7.5 / 2.7, 127 / 3.7, 0.8


def _fill_integers(raw: Any, bits: int, spread: float, torch: Any) -> None:
    """Unsigned values about the middle of their range, two 4-bit ones to a byte."""
    middle = 1 << (bits - 1)
    flat = raw.view(-1)
    for i in range(0, flat.numel(), 1 << 26):
        part = flat[i : i + (1 << 26)]
        total = torch.zeros(part.shape, dtype=torch.uint8, device=part.device)
        for shift in range(0, 8, bits):
            values = torch.empty(part.shape, dtype=torch.float16, device=part.device)
            values.normal_(float(middle), spread).round_().clamp_(0, 2 * middle - 1)
            total |= values.to(torch.uint8) << shift
        part.copy_(total)


def _fill_float8(tensor: Any, scale: bool, torch: Any) -> None:
    if "e8m0" in str(tensor.dtype):
        tensor.view(torch.uint8).random_(116, 122)
        return
    if not tensor.is_contiguous():
        return
    flat = tensor.view(-1)
    for i in range(0, flat.numel(), 1 << 26):  # in parts: a 16-bit copy of it all may not fit
        part = flat[i : i + (1 << 26)]
        values = torch.empty(part.shape, dtype=torch.float16, device=part.device)
        if scale:
            values.uniform_(1.0, 2.0)
        else:
            values.normal_(0.0, 100.0).clamp_(-448.0, 448.0)
        part.copy_(values.to(part.dtype))


def _fill_scale(name: str, tensor: Any) -> None:
    if "global" in name:
        tensor.fill_(30.0)
    elif name.lstrip("_") in ("k_scale", "v_scale", "q_scale"):
        tensor.fill_(0.01)
    else:
        tensor.abs_().clamp_(min=1e-4)


def _patch_dummy_loader(note: Function) -> None:
    """Fill the weights again behind ``DummyModelLoader.load_weights``, which 0.24 to 0.33 have.

    Whatever a version calls inside (until 0.30 a function for a model, then one for a tensor), the
    weights are not yet in their kernels' layout when it returns.
    """
    import torch  # type: ignore[import-not-found,unused-ignore]

    loader = import_module("vllm.model_executor.model_loader.dummy_loader").DummyModelLoader
    bits = int(os.environ.get("QSIM_DUMMY_WEIGHT_BITS", "0"))

    def wrap_load_weights(inner: Function) -> Function:
        def load_weights(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            result = inner(self, model, *args, **kwargs)
            with torch.no_grad():
                for layer in model.modules():
                    fill_dummy(layer, torch, bits)
            return result

        return load_weights

    _patch(loader, "load_weights", wrap_load_weights, note)


class Notes:
    """What was patched in this process, kept in a file for whoever started the server."""

    def __init__(self, folder: str, process: str) -> None:
        self.path = os.path.join(folder, f"hooks-{os.getpid()}.json")
        self.data: dict[str, Any] = {"process": process, "pid": os.getpid(), "hooks": {}}

    def __call__(self, name: str, value: str) -> None:
        self.data["hooks"][name] = value
        temporary = f"{self.path}.tmp"
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(self.data, f, indent=1)
        os.replace(temporary, self.path)


def _patch(owner: Any, method: str, wrap: Function, note: Function, *args: Any) -> None:
    name = f"{owner.__name__}.{method}"
    inner = owner.__dict__.get(method)
    if inner is None:
        note(name, "missing")
        return
    if not getattr(inner, "qsim_wrapped", False):
        wrapped = wrap(inner, *args)
        wrapped.qsim_wrapped = True
        setattr(owner, method, wrapped)
    note(name, "ok")


def patch_engine(folder: str, note: Function) -> EngineRecorder:
    """Patch the scheduler and the executors in this process."""
    recorder = EngineRecorder(Writer(folder, "engine", ENGINE_MAGIC))
    scheduler = import_module("vllm.v1.core.sched.scheduler").Scheduler
    _patch(scheduler, "schedule", recorder.wrap_schedule, note)
    _patch(scheduler, "update_from_output", recorder.wrap_update, note)
    for module, name in (
        ("vllm.v1.executor.uniproc_executor", "UniProcExecutor"),
        ("vllm.v1.executor.multiproc_executor", "MultiprocExecutor"),
    ):
        executor = getattr(import_module(module), name)
        _patch(executor, "execute_model", recorder.wrap_execute, note)
        _patch(executor, "sample_tokens", recorder.wrap_sample, note)
    return recorder


def on_current_stream(torch: Any) -> Function:
    """A function that records an event on the current stream.

    So does ``Event.record()``, but it makes a Stream object every time. This one keeps them by
    their handle, which takes a plain C call to know.
    """
    handle_of = getattr(getattr(torch, "_C", None), "_cuda_getCurrentRawStream", None)
    if handle_of is None:

        def record_simply(event: Any) -> None:
            event.record()

        return record_simply
    streams: dict[int, Any] = {}
    device: list[int] = []

    def record(event: Any) -> None:
        if not device:
            device.append(torch.cuda.current_device())
        handle = handle_of(device[0])
        stream = streams.get(handle)
        if stream is None:
            stream = streams[handle] = torch.cuda.current_stream()
        event.record(stream)

    return record


def patch_worker(folder: str, note: Function) -> WorkerRecorder:
    """Patch the GPU worker in this process."""
    import torch  # type: ignore[import-not-found,unused-ignore]

    def new_event() -> Any:
        return torch.cuda.Event(enable_timing=True)

    writer = Writer(folder, "worker", WORKER_MAGIC)
    recorder = WorkerRecorder(writer, new_event, on_current_stream(torch))
    worker = import_module("vllm.v1.worker.gpu_worker").Worker
    _patch(worker, "execute_model", recorder.wrap_execute, note)
    _patch(worker, "sample_tokens", recorder.wrap_sample, note)
    _patch(worker, "init_device", recorder.wrap_init_device, note, note)
    return recorder


def wait_for_turn(note: Function) -> None:
    """Hold the locks of this server's GPUs until this process ends; wait while another has them.

    QSIM_GPU_LOCKS names a file for each GPU. They are never closed here: the kernel gives the locks
    back when a process ends, however it ends. Its GPU memory may take a moment longer.
    """
    files = [f for f in os.environ.get("QSIM_GPU_LOCKS", "").split(os.pathsep) if f]
    if not files:
        return
    import fcntl

    start = now()
    for path in sorted(files):  # in one order, so that nobody waits in a circle
        fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), fcntl.LOCK_EX)
    pause, deadline = threading.Event(), now() + 30.0
    while _gpu_memory_in_use() > _FREE_BYTES and now() < deadline:
        pause.wait(0.2)
    note("waited_for_gpus_s", f"{now() - start:.3f}")


_FREE_BYTES = 2 << 30  # less than that in use is nobody's model


def _gpu_memory_in_use() -> int:
    """Bytes in use on the fullest of this server's GPUs; 0 where that cannot be known."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        indices = [int(x) for x in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in indices]
        return max(int(nvml.nvmlDeviceGetMemoryInfo(h).used) for h in handles)
    except Exception:
        return 0


def register() -> None:
    """The entry point: patch this process if it is an EngineCore or a worker."""
    import multiprocessing

    folder = os.environ.get("QSIM_RECORDER_DIR")
    process = multiprocessing.current_process().name
    single = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    engine = process.startswith("EngineCore") or single
    in_engine = os.environ.get("QSIM_RECORDER_TP", "1") == "1"
    worker = process.startswith("VllmWorker") or (engine and in_engine)
    steps = os.environ.get("QSIM_RECORDER_STEPS", "1") == "1"
    if not folder or not (engine or worker):
        return
    note = Notes(folder, process)
    try:
        note("vllm", str(getattr(import_module("vllm"), "__version__", "unknown")))
        if engine and steps:
            patch_engine(folder, note)
        if worker:
            if steps:
                patch_worker(folder, note)
            if os.environ.get("QSIM_RANDOM_DUMMY_BITS") == "1":
                _patch_dummy_loader(note)
        if engine:
            wait_for_turn(note)
        note("status", "ok")
    except Exception:
        # vLLM must come up all the same; whoever started it reads the note and stops
        note("status", "failed: " + traceback.format_exc())
