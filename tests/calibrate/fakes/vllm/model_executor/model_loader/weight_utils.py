from vllm import MINOR

if MINOR < 31:

    def initialize_dummy_weights(model, model_config):
        model.initialized = True

else:

    def initialize_single_dummy_weight(param, low=None, high=None, seed=1234, name=""):
        param.initialized = True
