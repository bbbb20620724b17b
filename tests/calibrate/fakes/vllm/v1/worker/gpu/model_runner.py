from enum import Enum
from types import SimpleNamespace


class CUDAGraphMode(Enum):
    NONE = 0
    PIECEWISE = 1
    FULL = 2


def dispatch_cg_and_sync_dp(cudagraph_manager, num_reqs, num_tokens, *args, **kwargs):
    if num_tokens > 512:
        mode = CUDAGraphMode.NONE
    else:
        mode = CUDAGraphMode.FULL if num_reqs == num_tokens else CUDAGraphMode.PIECEWISE
    return SimpleNamespace(cg_mode=mode, num_tokens=num_tokens), None


class GPUModelRunner:
    step_s = 0.0

    def execute_model(self, scheduler_output):
        tokens = scheduler_output.total_num_scheduled_tokens
        requests = len(scheduler_output.num_scheduled_tokens)
        dispatch_cg_and_sync_dp(None, requests, tokens, None, 1, 0, need_eager=False)
        self.step_s = 1e-3 * (0.5 + 0.004 * requests + 0.001 * tokens)
