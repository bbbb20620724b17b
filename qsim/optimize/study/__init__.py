"""What quantization does to a model, on GPUs, under traffic: four levels, and what they say."""
