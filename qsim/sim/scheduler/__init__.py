"""vLLM's scheduler without a clock: rules, KV blocks, prefix cache, batches."""
