"""Quality of quantized models: recovery per method and task, published, measured or estimated."""
