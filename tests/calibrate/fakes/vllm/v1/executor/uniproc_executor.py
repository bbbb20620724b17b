import pickle

from vllm.v1.worker.gpu_worker import Worker


class UniProcExecutor:
    def __init__(self):
        self.driver_worker = Worker(rank=0)
        self.driver_worker.init_device()

    def execute_model(self, scheduler_output, non_block=False):
        # the attributes of a SchedulerOutput must survive the way to a worker's process
        return self.driver_worker.execute_model(pickle.loads(pickle.dumps(scheduler_output)))

    def sample_tokens(self, grammar_output, non_block=False):
        return self.driver_worker.sample_tokens(grammar_output)
