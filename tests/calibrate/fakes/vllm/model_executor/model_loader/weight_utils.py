def initialize_dummy_weights(model, model_config):
    model.initialized = True
