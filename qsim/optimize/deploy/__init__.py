"""Results in a form that can be started: vllm serve, Kubernetes, scenarios."""
