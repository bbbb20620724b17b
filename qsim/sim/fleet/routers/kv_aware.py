"""A router that knows what each replica's KV cache holds."""

from __future__ import annotations

from qsim.sim.fleet.routers.base import FleetView, Rng, Values, Weights


class KvAware:
    """The replica with the least to prefill and to hold, the request included.

    The cost of a replica is

        prefill_load_scale * (P + prompt - overlap_score_credit * cached) + A + new

    in tokens: ``P`` are those of its requests without a first token that were to be prefilled,
    ``cached`` those of this prompt that its prefix cache holds now, ``A`` those of the prompts of
    its unfinished requests, what they share counted once, and ``new`` those of this prompt that are
    not among them. With weights it is the cost per weight. Of equals, the next one in turn.

    It is the cost of NVIDIA Dynamo's KV router (``--router-mode kv``: prefill blocks and decode
    blocks, ``lib/kv-router/src/scheduling/selector.rs``) under the names of its options, with its
    defaults, no temperature and blocks of one token; what is cached comes from the engines' KV
    events there. Neither counts tokens of output. llm-d's precise prefix-cache scorer weighs the
    cached share (3) against queues (2) and KV use (2) instead of adding tokens up.
    """

    #: the engines are looked at whenever a request comes
    reads_kv_usage = True

    def __init__(self, view: FleetView, rng: Rng, weights: Weights, parameters: Values) -> None:
        n = len(view.outstanding_requests)
        self._view = view
        self._credit = parameters["overlap_score_credit"]
        self._scale = parameters["prefill_load_scale"]
        self._inverse = [1.0] * n if weights is None else [1.0 / w for w in weights]
        self._open = list(range(n))
        self._last = -1
        self._prefill = [0] * n  # tokens
        self._held = [0] * n  # tokens
        #: by replica, how many of its requests have a prefix block
        self._blocks: list[dict[int, int]] = [{} for _ in range(n)]
        self._pending: dict[int, int] = {}  # tokens to prefill, of requests without a first token

    def only(self, servers: list[int]) -> None:
        self._open = servers

    def choose(self, request: int, now_ps: int) -> int:
        prompt, _ = self._view.length_of(request)
        ids = self._view.prefix_ids(request)
        per_id = self._view.prefix_block_tokens(request)
        cached = self._view.cached_tokens(request, now_ps)
        size = max(prompt, per_id * len(ids))
        least, target, after = 0.0, -1, False
        for i in self._open:
            held = self._blocks[i]
            shared = 0
            for block in ids:
                if block not in held:
                    break
                shared += per_id
            to_prefill = self._prefill[i] + prompt - self._credit * cached[i]
            cost = (self._scale * to_prefill + self._held[i] + size - shared) * self._inverse[i]
            if target < 0 or cost < least or (cost == least and not after and i > self._last):
                least, target, after = cost, i, i > self._last
        self._last = target
        self._hold(target, ids, per_id, prompt, 1)
        pending = prompt - cached[target]
        self._pending[request] = pending
        self._prefill[target] += pending
        return target

    def first_token(self, replica: int, request: int) -> None:
        """A request of this replica has its first token."""
        self._prefill[replica] -= self._pending.pop(request, 0)

    def ended(self, replica: int, request: int) -> None:
        """A request of this replica has its last token, or will never have it."""
        self._prefill[replica] -= self._pending.pop(request, 0)
        prompt, _ = self._view.length_of(request)
        ids = self._view.prefix_ids(request)
        self._hold(replica, ids, self._view.prefix_block_tokens(request), prompt, -1)

    def _hold(self, replica: int, ids: list[int], per_id: int, prompt: int, by: int) -> None:
        """One request more, or less, that has these prefix blocks."""
        blocks = self._blocks[replica]
        tokens = max(0, prompt - per_id * len(ids))
        for block in ids:
            count = blocks.get(block, 0) + by
            if count:
                blocks[block] = count
            else:
                del blocks[block]
            if count == (1 if by > 0 else 0):
                tokens += per_id
        self._held[replica] += by * tokens
