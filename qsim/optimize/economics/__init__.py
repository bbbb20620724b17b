"""What GPUs cost and energy emits: prices, carbon."""
