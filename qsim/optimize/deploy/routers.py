"""Which real router does what was simulated."""

from __future__ import annotations

from qsim.sim.fleet.routers.router import check_router

__all__ = ["real_router"]


def real_router(router: str) -> str:
    """What to put in front of the servers, for people; "" where none is known.

    The options are those of vLLM's router (vllm-project/router, docs/load_balancing), of
    production-stack's (``src/vllm_router``), and of NVIDIA Dynamo's frontend (Configuration and
    Tuning of its router).
    """
    spec = check_router(router)
    p = spec.parameters
    if spec.name == "prefix-affinity":
        return (
            f"vllm-router --policy cache_aware --cache-threshold {p['cache_threshold']:g} "
            f"--balance-abs-threshold {p['balance_abs_threshold']:.0f} "
            f"--balance-rel-threshold {p['balance_rel_threshold']:g} (it looks at the fullest "
            "server, where the simulation looked at the one that would get the request)"
        )
    if spec.name == "kv-aware":
        return (
            "python -m dynamo.frontend --router-mode kv --router-kv-overlap-score-credit "
            f"{p['overlap_score_credit']:g} --router-prefill-load-scale "
            f"{p['prefill_load_scale']:g}, with KV events of the servers"
        )
    return _SAME.get(spec.name, "")


_SAME = {
    "round-robin": "vllm-router --policy round_robin",
    "random": "a Kubernetes Service, or vllm-router --policy random",
    "least-requests": "HAProxy with balance leastconn, or nginx with least_conn",
    "power-of-two": "vllm-router --policy power_of_two, or Envoy with LEAST_REQUEST",
    "vllm": "vllm serve --data-parallel-size, which then is one server",
    "session-affinity": "vllm-router --policy consistent_hash, or production-stack with "
    "--routing-logic session, where clients send a session id as a header (neither moves a session "
    "whose server has too much to do, as the simulation did)",
}
