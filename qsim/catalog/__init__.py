"""What can be served and on what: models, quantization methods, GPUs."""
