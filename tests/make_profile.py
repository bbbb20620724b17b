"""Small made-up profiles for tests; none of the numbers was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qsim.profiles.schema import (
    DecodeSpan,
    EngineDefaults,
    FrontEnd,
    HostTimes,
    Identity,
    Latency,
    Memory,
    MixedSpan,
    Power,
    Profile,
    Throttle,
)

GRAPH_SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]


def make_profile(
    *,
    gpu: str = "h200_sxm",
    model: str = "toy-1b",
    method: str = "bf16",
    host_ms: float = 0.05,
    launch_ms: float = 0.5,
    frontend: bool = True,
    throttle: float = 0.0,
    num_gpu_blocks: int = 4096,
    decode_ms: float = 4.0,
    launch_queue: tuple[float, float] = (0.0, 0.0),
    **engine: Any,
) -> Profile:
    """A profile with GPU-bound decode (4 ms and up) unless told otherwise."""
    f = 1.0 if frontend else 0.0
    # as long as the KV cache holds: otherwise each run says that it cuts it
    engine.setdefault("max_model_len", max(2, min(131072, (num_gpu_blocks - 1) * 16)))
    mixed = MixedSpan(
        tokens=[1, 512, 8192],
        base_ms=[decode_ms + 1.0, decode_ms + 6.0, decode_ms + 120.0],
        ms_per_decode_context_token=2.5e-5,
        ms_per_pair=6e-7,
        ms_per_chunk=0.02,
        ms_per_decode=0.001,
    )
    return Profile(
        identity=Identity(gpu=gpu, model=model, method=method),
        engine=replace(EngineDefaults(), **engine),
        latency=Latency(
            graph_sizes=GRAPH_SIZES,
            decode=DecodeSpan(
                rows=[1, 16, 64, 512],
                base_ms=[decode_ms, decode_ms + 0.3, decode_ms + 0.8, decode_ms + 5.0],
                context_knots_tokens=[0, 2000],
                ms_per_context_token=[[3e-5, 3e-5, 3e-5, 3e-5], [2e-5, 2e-5, 2e-5, 2e-5]],
            ),
            piecewise=mixed,
            eager=replace(mixed, ms_per_pair=7e-7),
            throttle=Throttle(
                start_w=300.0, full_w=400.0, decode=throttle, piecewise=throttle, eager=throttle
            ),
        ),
        host=HostTimes(
            schedule_ms=[host_ms, host_ms / 50],
            update_ms=[host_ms, host_ms / 50],
            launch_decode_ms=[launch_ms, 0.0],
            launch_piecewise_ms=[launch_ms * 2, 0.0],
            launch_eager_ms=[launch_ms * 4, 0.0],
            launch_eager_queue=list(launch_queue),
        ),
        frontend=FrontEnd(
            receive_ms=2.0 * f,
            receive_ms_per_1k_prompt_tokens=0.25 * f,
            receive_serial_ms=0.3 * f,
            first_token_ms=1.0 * f,
            first_token_ms_per_1k_prompt_tokens=0.5 * f,
            first_token_ms_per_running=0.05 * f,
            last_token_ms=1.2 * f,
            last_token_ms_per_running=0.04 * f,
        ),
        power=Power(
            idle_w=130.0,
            busy_w=300.0,
            j_per_prefill_token=4e-3,
            j_per_decode_token=6e-3,
            j_per_context_token=1e-5,
            j_per_pair=4e-7,
            cap_w=700.0,
        ),
        memory=Memory(
            num_gpu_blocks=num_gpu_blocks,
            block_size=16,
            kv_bytes_per_token=131072,
            weight_bytes=2_000_000_000,
        ),
    )


def constant_profile(service_ms: float, **engine: Any) -> Profile:
    """Every step takes ``service_ms`` on the GPU and nothing anywhere else."""
    p = make_profile(host_ms=0.0, launch_ms=0.0, frontend=False, **engine)
    flat = MixedSpan([1], [service_ms], 0.0, 0.0, 0.0, 0.0)
    return replace(
        p,
        latency=replace(
            p.latency,
            decode=DecodeSpan([1], [service_ms], [0], [[0.0]]),
            piecewise=flat,
            eager=flat,
        ),
        host=HostTimes(
            schedule_ms=[0.0, 0.0],
            update_ms=[0.0, 0.0],
            launch_decode_ms=[0.0, 0.0],
            launch_piecewise_ms=[0.0, 0.0],
            launch_eager_ms=[0.0, 0.0],
            result_ms=0.0,
            turn_ms=0.0,
            gpu_gap_ms=0.0,
            idle_sleep_ms=0.0,
        ),
    )
