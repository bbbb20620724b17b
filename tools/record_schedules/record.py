"""Record what the real scheduler of the installed vLLM does with scenarios, on a CPU.

    VENV/bin/python tools/record_schedules/record.py OUT SCENARIO.json...

``VENV`` has vLLM; qsim need not be there. The engine core, its scheduler and its KV-cache manager
are vLLM's own. The model is replaced: it answers at once with one token for every request whose
known tokens are all computed at the end of the step. OUT gets one file a scenario:
``{"scenario": ..., "expected": {"steps": [...]}}``, as docs/scheduler.md describes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fake_gpu import GIB, install_platform, load_driver

#: a small dense model; nothing of it is ever built
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: names of vLLM's options that a scenario's config may have as they are
SAME = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "block_size",
    "max_model_len",
    "async_scheduling",
    "enable_prefix_caching",
    "long_prefill_token_threshold",
)
NEW = ("max_num_active_seqs", "long_prefill_token_threshold_adaptive")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the recordings")
    parser.add_argument("scenarios", type=Path, nargs="+", help="scenario files")
    given = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_USE_FLASHINFER_SAMPLER="0")
    try:
        load_driver()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    install_platform()
    import vllm

    version = str(vllm.__version__)
    given.out.mkdir(parents=True, exist_ok=True)
    for path in given.scenarios:
        data = json.loads(path.read_text(encoding="utf-8"))
        scenario = data.get("scenario", data)
        wanted = scenario["config"].get("vllm_version")
        if wanted is not None and wanted.split(".")[:2] != version.split(".")[:2]:
            print(f"error: {path} is for vLLM {wanted}; this is {version}", file=sys.stderr)
            return 2
        scenario["config"]["vllm_version"] = version
        steps = record(scenario)
        write(given.out / path.name, scenario, steps)
        print(f"{path.name}: {len(steps)} records", file=sys.stderr)
    return 0


def write(path: Path, scenario: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """One line an arrival and one a record, so that differences can be read."""

    def lines(rows: list[Any]) -> str:
        return ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)

    config = json.dumps(scenario["config"], separators=(",", ":"))
    text = (
        f'{{"scenario":{{"name":{json.dumps(scenario.get("name", ""))},\n"config":{config},\n'
        f'"arrivals":[\n{lines(scenario["arrivals"])}\n]}},\n'
        f'"expected":{{"steps":[\n{lines(steps)}\n]}}}}\n'
    )
    path.write_text(text, encoding="utf-8")


def record(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    """What vLLM does with one scenario: docs/scheduler.md tells what a turn is."""
    config = scenario["config"]
    core = make_core(config)
    recorder = Recorder(core)
    core.model_executor.recorder = recorder
    prompts = Prompts(config["block_size"])
    waiting = sorted(enumerate(scenario["arrivals"]), key=lambda pair: pair[1]["turn"])
    turn = 0
    while True:
        while waiting and waiting[0][1]["turn"] <= turn:
            position, arrival = waiting.pop(0)
            add(core, arrival, position, prompts)
        recorder.turn = turn
        if core.scheduler.has_requests() or core.batch_queue:
            core.step_fn()
        elif not waiting:
            break
        turn += 1
    free = core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    if free != config["num_gpu_blocks"] - 1:
        raise RuntimeError(f"{free} blocks are free at the end of {scenario.get('name')!r}")
    return recorder.steps


def make_core(config: dict[str, Any]) -> Any:
    """vLLM's engine core with these settings and a made-up executor."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.core import EngineCore

    folder = tempfile.mkdtemp(prefix="qsim-model-")
    try:
        Path(folder, "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        settings = {name: config[name] for name in SAME}
        settings |= {name: config[name] for name in NEW if name in config}
        arguments = EngineArgs(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            scheduling_policy=config["policy"],
            num_gpu_blocks_override=config["num_gpu_blocks"],
            **settings,
        )
        vllm_config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
        return EngineCore(vllm_config, executor_class(), log_stats=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def executor_class() -> Any:
    """An executor whose model answers at once."""
    import torch
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

    tokens = itertools.count(1_000_000_000)  # no two outputs are alike

    class AnswersAtOnce(Executor):
        uses_ray = False
        supports_pp = True

        @classmethod
        def supports_async_scheduling(cls) -> bool:
            return True

        def _init_executor(self) -> None:
            self.recorder: Recorder | None = None
            self.scheduled: list[Any] = []

        def get_kv_cache_specs(self) -> list[dict[str, Any]]:
            spec = FullAttentionSpec(
                block_size=self.vllm_config.cache_config.block_size,
                num_kv_heads=8,
                head_size=64,
                dtype=torch.bfloat16,
            )
            return [{f"model.layers.{i}.self_attn.attn": spec for i in range(2)}]

        def determine_available_memory(self) -> list[int]:
            return [GIB << 10]  # num_gpu_blocks_override decides

        def initialize_from_config(self, kv_cache_configs: Any) -> None:
            pass

        def compile_or_warm_up_model(self) -> None:
            pass

        def get_supported_kv_cache_layouts(self) -> list[list[str]]:
            return [["LBNHC"]]

        def set_kv_cache_layout(self, *args: Any, **kwargs: Any) -> None:
            pass

        def get_kv_connector_handshake_metadata(self) -> None:
            return None

        def init_kv_output_aggregator(self, connector: Any) -> None:
            pass

        def register_failure_callback(self, callback: Any) -> None:
            pass

        def check_health(self) -> None:
            pass

        def shutdown(self) -> None:
            pass

        def take_draft_token_ids(self) -> None:
            return None

        def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> list[Any]:
            return [None]

        def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
            if not scheduler_output.total_num_scheduled_tokens:
                return self._answer(EMPTY_MODEL_RUNNER_OUTPUT, non_block)
            self.scheduled.append(scheduler_output)
            return self._answer(None, non_block)

        def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
            scheduler_output = self.scheduled.pop(0)
            assert self.recorder is not None
            complete = self.recorder.complete[id(scheduler_output)]
            ids = list(scheduler_output.num_scheduled_tokens)
            fields = {
                "req_ids": ids,
                "req_id_to_index": {name: i for i, name in enumerate(ids)},
                "sampled_token_ids": [[next(tokens)] if complete[name] else [] for name in ids],
                "logprobs": None,
                "prompt_logprobs_dict": {},
                "pooler_output": [],
            }
            return self._answer(ModelRunnerOutput(**fields), non_block)

        @staticmethod
        def _answer(value: Any, non_block: bool) -> Any:
            if not non_block:
                return value
            future: Future[Any] = Future()
            future.set_result(value)
            return future

    return AnswersAtOnce


class Recorder:
    """Wraps the calls of a scheduler, and writes down what they do."""

    def __init__(self, core: Any) -> None:
        self.turn = 0
        self.steps: list[dict[str, Any]] = []
        #: by schedule call: which requests have all known tokens computed after the step
        self.complete: dict[int, dict[str, bool]] = {}
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no two outputs have one id()
        self._preempted: list[str] = []
        self._scheduled: list[list[Any]] = []
        scheduler = self._scheduler = core.scheduler
        self._schedule, scheduler.schedule = scheduler.schedule, self.schedule
        self._update = scheduler.update_from_output
        scheduler.update_from_output = self.update
        self._after, scheduler._update_after_schedule = (
            scheduler._update_after_schedule,
            self.after_schedule,
        )
        self._preempt, scheduler._preempt_request = scheduler._preempt_request, self.preempt

    @property
    def free_blocks(self) -> int:
        pool = self._scheduler.kv_cache_manager.block_pool
        return int(pool.get_num_free_blocks())

    def preempt(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._preempted.append(request.request_id)
        return self._preempt(request, *args, **kwargs)

    def after_schedule(self, scheduler_output: Any) -> Any:
        requests = self._scheduler.requests
        self._scheduled = [
            [name, n, requests[name].num_computed_tokens]
            for name, n in scheduler_output.num_scheduled_tokens.items()
        ]
        return self._after(scheduler_output)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._preempted = []
        output = self._schedule(*args, **kwargs)
        self._kept.append(output)
        number = self._numbers[id(output)] = len(self._kept)
        requests = self._scheduler.requests
        self.complete[id(output)] = {
            name: not requests[name].is_prefill_chunk for name in output.num_scheduled_tokens
        }
        running, waiting = self._scheduler.get_request_counts()
        self.steps.append(
            {
                "turn": self.turn,
                "kind": "schedule",
                "step": number,
                "scheduled": self._scheduled,
                "preempted": self._preempted,
                "running": running,
                "waiting": waiting,
                "free_blocks": self.free_blocks,
            }
        )
        return output

    def update(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = self._update(scheduler_output, *args, **kwargs)
        each = [output for client in outputs.values() for output in client.outputs]
        self.steps.append(
            {
                "turn": self.turn,
                "kind": "update",
                "step": self._numbers[id(scheduler_output)],
                "tokens": [output.request_id for output in each if output.new_token_ids],
                "finished": [o.request_id for o in each if o.finish_reason is not None],
                "free_blocks": self.free_blocks,
            }
        )
        return outputs


class Prompts:
    """Token ids of prompts: one run for each hash id, and else tokens found nowhere else."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._runs: dict[int, list[int]] = {}
        self._unused = itertools.count(10)

    def tokens(self, arrival: dict[str, Any]) -> list[int]:
        result: list[int] = []
        for key in arrival.get("hash_ids", []):
            if key not in self._runs:
                self._runs[key] = self._fresh(self._block_size)
            result += self._runs[key]
        return result + self._fresh(arrival["prompt_tokens"] - len(result))

    def _fresh(self, count: int) -> list[int]:
        return list(itertools.islice(self._unused, count))


def add(core: Any, arrival: dict[str, Any], position: int, prompts: Prompts) -> None:
    """Give the engine a request; its arrival time is its position."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    fields = {
        "request_id": arrival["id"],
        "prompt_token_ids": prompts.tokens(arrival),
        "mm_features": None,
        "sampling_params": SamplingParams(
            max_tokens=arrival["output_tokens"], ignore_eos=True, temperature=0.0
        ),
        "pooling_params": None,
        "arrival_time": float(position),
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
        "priority": arrival.get("priority", 0),
    }
    known = EngineCoreRequest.__struct_fields__
    request = EngineCoreRequest(**{k: v for k, v in fields.items() if k in known})
    core.add_request(*core.preprocess_add_request(request))


if __name__ == "__main__":
    sys.exit(main())
