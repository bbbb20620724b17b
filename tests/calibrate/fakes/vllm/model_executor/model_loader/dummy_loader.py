from vllm.model_executor.model_loader.weight_utils import initialize_dummy_weights  # noqa: F401
