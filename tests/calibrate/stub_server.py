"""A stub of vLLM's server: HTTP, log lines and engine steps, with modelled delays. For tests only.

    python stub_server.py serve MODEL --port N [vLLM's other options are ignored]

STUB_MODE makes it fail in the ways a real server does, STUB_MODE_QUANTIZED does so for quantized
models only; "crash-later" crashes after 20 steps or, where STUB_CRASH_PROMPT is set, in the step
after a prompt of that many tokens came, once the recorder has written what was before. It loads
vLLM's general plugins, so the step recorder runs inside it, on the classes in ``fakes``.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent / "fakes"))

BLOCKS = int(os.environ.get("STUB_BLOCKS", "20001"))
FAILURES = {
    "oom": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a "
        "total capacity of 139.80 GiB of which 12.00 MiB is free."
    ),
    "busy-gpu": (
        "ValueError: Free memory on device cuda:0 (10.2/139.8 GiB) on startup is less than "
        "desired GPU memory utilization (0.92, 128.6 GiB)."
    ),
    "no-gpu": "RuntimeError: No CUDA GPUs are available",
    "no-kv": "ValueError: No available memory for the cache blocks. Try increasing it.",
    "crash": "ValueError: The quantization method humbug is not supported",
}


def log(text):
    print(f"(EngineCore pid={os.getpid()}) INFO 11-20 12:00:00 [stub.py:1] {text}", flush=True)


def version():
    """That of the fakes, unless a test says otherwise."""
    import vllm

    return os.environ.get("STUB_VERSION", vllm.__version__)


def quantized(model):
    config = json.loads((Path(model) / "config.json").read_text())
    return "quantization_config" in config


def weights_gib(model):
    """What vLLM would load of llama-3.1-8b, in 16 or 8 bits; STUB_WEIGHTS_GIB overrides it."""
    return float(os.environ.get("STUB_WEIGHTS_GIB") or (8.46 if quantized(model) else 14.96))


class Engine:
    def __init__(self, mode):
        self.mode = mode
        multiprocessing.current_process().name = "EngineCore"
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        DummyModelLoader().load_weights(SimpleNamespace(modules=list), None)
        self.executor = UniProcExecutor()
        self.scheduler = Scheduler()
        self.queues = {}
        self.wake = asyncio.Event()
        self.steps = 0
        self.finished = 0
        self.crash_prompt = int(os.environ.get("STUB_CRASH_PROMPT", "-1"))
        self.last_step = math.inf
        if mode == "crash-later" and self.crash_prompt < 0:
            self.last_step = 20

    def add(self, prompt, output):
        from vllm.v1.core.sched.scheduler import Request

        if prompt == self.crash_prompt:
            self.last_step = self.steps
        name = f"r{len(self.queues)}"
        self.queues[name] = asyncio.Queue()
        self.scheduler.waiting.append(Request(name, prompt, output))
        self.wake.set()
        return self.queues[name]

    async def run(self):
        import torch

        while True:
            if not (self.scheduler.waiting or self.scheduler.running):
                self.wake.clear()
                await self.wake.wait()
            output = self.scheduler.schedule(False)
            self.executor.execute_model(output, non_block=True)
            result = self.executor.sample_tokens(None, non_block=True)
            await asyncio.sleep(max(0.0, torch.cuda.busy_until() - time.perf_counter()))
            self.steps += 1
            if self.steps > self.last_step:
                if self.crash_prompt >= 0:
                    time.sleep(2.0)  # the recorder writes every 0.2 s
                print("RuntimeError: CUDA error: an illegal memory access", flush=True)
                os._exit(1)
            for name, finished in self.scheduler.update_from_output(output, result):
                self.finished += bool(finished)
                self.queues[name].put_nowait(finished)


def metrics(engine):
    """None with STUB_NO_METRICS; STUB_BUSY requests of others run."""
    if "STUB_NO_METRICS" in os.environ:
        return None
    dtype = os.environ.get("STUB_CACHE_DTYPE", "auto")
    busy = float(os.environ.get("STUB_BUSY", "0"))
    return (
        f'vllm:cache_config_info{{block_size="16",cache_dtype="{dtype}",engine="0",'
        f'num_gpu_blocks="{BLOCKS}"}} 1.0\n'
        f'vllm:num_requests_running{{engine="0"}} {busy}\n'
        'vllm:num_requests_waiting{engine="0"} 0.0\n'
        f'vllm:request_success_total{{engine="0",finished_reason="length"}} {engine.finished}\n'
        f'vllm:request_success_total{{engine="0",finished_reason="stop"}} '
        f"{os.environ.get('STUB_OTHERS', '0') if engine.finished else 0}\n"
    )


async def serve(reader, writer, engine):
    while True:
        head = await reader.readline()
        if not head:
            break
        _, path, _ = head.decode().split(" ", 2)
        length = 0
        while (line := await reader.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = json.loads(await reader.readexactly(length)) if length else {}
        if path == "/v1/completions":
            await complete(writer, engine, body)
            continue
        text = {
            "/health": "",
            "/v1/models": json.dumps(
                {
                    "data": [
                        {
                            "id": "m",
                            "root": os.environ.get("STUB_ROOT", "/tmp/model"),
                            "max_model_len": 32768,
                        }
                    ]
                }
            ),
            "/version": json.dumps({"version": version()}),
            "/metrics": metrics(engine),
            "/server_info?config_format=json": os.environ.get("STUB_SERVER_INFO"),
        }.get(path)
        status = "404 Not Found" if text is None else "200 OK"
        text = text or ""
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
    writer.close()


async def complete(writer, engine, body):
    if body["max_tokens"] > 3000:
        text = '{"error": {"message": "max_tokens is too large"}}'
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write((head + text).encode())
        return
    assert body["ignore_eos"]
    assert body["stream"]
    if "STUB_PROMPTS" in os.environ:  # a file that gets them, a line each
        with open(os.environ["STUB_PROMPTS"], "a") as file:
            file.write(json.dumps(body["prompt"]) + "\n")
    tokens = engine.add(len(body["prompt"]), body["max_tokens"])
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def chunk(text):
        data = f"data: {text}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    while True:
        finished = await tokens.get()
        chunk('{"id":"cmpl-1","choices":[{"index":0,"text":"t5","finish_reason":null}]}')
        if finished:
            break
    n = body["max_tokens"]
    chunk(f'{{"id":"cmpl-1","choices":[],"usage":{{"prompt_tokens":1,"completion_tokens":{n}}}}}')
    chunk("[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    args, _ = parser.parse_known_args()
    mode = os.environ.get("STUB_MODE", "ok")
    if "STUB_MODE_QUANTIZED" in os.environ and quantized(args.model):
        mode = os.environ["STUB_MODE_QUANTIZED"]
    log("Initializing a V1 LLM engine (v0.24.0) with config: 'cudagraph_capture_sizes': [4, 2, 1]")
    await asyncio.sleep(float(os.environ.get("STUB_START_S", "0.1")))
    if mode in FAILURES:
        print("Traceback (most recent call last):")
        print(FAILURES[mode], flush=True)
        sys.exit(1)
    log("Chunked prefill is enabled with max_num_batched_tokens=8192.")
    log(f"Model loading took {weights_gib(args.model)} GiB and 1.000000 seconds")
    log("Available KV cache memory: 39.06 GiB")
    log("CUDA graph pool memory: 0.51 GiB (actual), 0.62 GiB (estimated), difference: 0.11")
    log(
        "Free memory on device (139.1/139.8 GiB) on startup. Actual usage is 15.2 GiB for "
        "consumed memory (weights + non-torch), 1.85 GiB for peak activation, and 0.51 GiB for "
        "CUDAGraph memory."
    )
    log(f"GPU KV cache size: {BLOCKS * 16:,} tokens")
    engine = Engine(mode)
    if mode == "stubborn":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    task = asyncio.create_task(engine.run())
    try:
        server = await asyncio.start_server(
            lambda r, w: serve(r, w, engine), "127.0.0.1", args.port
        )
    except OSError:
        print(f"OSError: [Errno 98] error while attempting to bind on address "
              f"('127.0.0.1', {args.port}): address already in use", flush=True)  # fmt: skip
        sys.exit(1)
    log("Application startup complete.")
    async with server:
        await asyncio.gather(server.serve_forever(), task)


if __name__ == "__main__":
    asyncio.run(main())
