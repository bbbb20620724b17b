class MultiprocExecutor:
    def execute_model(self, scheduler_output, non_block=False):
        raise NotImplementedError

    def sample_tokens(self, grammar_output, non_block=False):
        raise NotImplementedError
