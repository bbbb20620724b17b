from vllm import MINOR
from vllm.model_executor.model_loader import weight_utils


class DummyModelLoader:
    def load_weights(self, model, model_config):
        for layer in model.modules():
            if MINOR < 31:
                weight_utils.initialize_dummy_weights(layer, model_config)
            else:
                weight_utils.initialize_single_dummy_weight(layer, name="weight")
