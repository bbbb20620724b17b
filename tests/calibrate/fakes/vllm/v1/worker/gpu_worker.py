import time

import torch


class Worker:
    def __init__(self, rank):
        self.rank = rank

    def init_device(self):
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner

        self.model_runner = GPUModelRunner()

    def execute_model(self, scheduler_output):
        self.model_runner.execute_model(scheduler_output)

    def sample_tokens(self, grammar_output):
        torch.cuda.work_s += self.model_runner.step_s
        time.sleep(0)
        return "output"
