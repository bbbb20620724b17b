"""What a batch's contexts cost the attention kernel, against a batch of real traffic.

FlashAttention 3 cuts the context of a request into blocks of 128 tokens and, where there are fewer
pairs of a request and a KV head than processors, a request's blocks into splits. By its scheduler
(vLLM's flash-attention, ``hopper/flash_prepare_scheduler.cu``) a split gets at most
``b = ceil(1.1 * blocks * heads / processors)`` blocks, and a request of n blocks ``ceil(n / b)``
splits. A step's attention has ended when the busiest processor has worked off its splits.

Requests of one length, 8 or 16 or 32 of them, fill the 132 processors of an H100 or H200 with 128
equal splits. Requests of different lengths, as they are in traffic, make some more than 132, and
the last of these run almost alone: the busiest processor has half more than its share of the
blocks. The loads of a calibration hold many batches of the first kind. Fitted as they are, they
promise steps with long contexts 3 to 6% shorter than traffic sees. So the context tokens of a
decode step are counted here as those of a batch of different lengths that takes as long, and
profiles are fitted on these.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.calibrate.recordings.data import Recording

#: tokens of a block, the margin for a split's blocks, most splits in a CUDA graph (vLLM's
#: AttentionConfig.flash_attn_max_num_splits_for_cuda_graph)
_BLOCK, _MARGIN, _MOST_SPLITS = 128, 1.1, 32
#: processors by GPU, of those on which vLLM runs FlashAttention 3
_PROCESSORS = {"h100_sxm": 132, "h200_sxm": 132}
#: the part of the time that goes with the busiest processor, not with all blocks: of ten recordings
#: nine predict the decode steps of left-out phases best with 0.45 to 1, five of them below 0.75
#: (tools/spans.py --part)
PART = 0.5
#: contexts grow by a token a step: shares are worked out anew for every so many steps of a batch
_STEPS = 16


def busiest_share(contexts: npt.ArrayLike, heads: int, processors: int = 132) -> float:
    """Blocks of the busiest processor over the mean of all; at least 1.

    ``contexts``, shape (n,), are the context tokens of each request of a decode step, ``heads`` the
    KV heads on the GPU, ``processors`` its streaming multiprocessors.
    """
    blocks = -(-(np.asarray(contexts, dtype=np.int64) + 1) // _BLOCK)
    most = int(np.ceil(_MARGIN * float(blocks.sum()) * heads / processors))
    splits = np.clip(-(-blocks // most), 1, _MOST_SPLITS)
    each = -(-blocks // splits)
    work: list[int] = []
    for n, size, count in zip(blocks.tolist(), each.tolist(), splits.tolist(), strict=True):
        parts = [min(size, n - i * size) for i in range(count) if n > i * size]
        work += parts * heads
    if len(work) <= processors:
        busiest = max(work)
    else:
        loads = [0] * processors
        for n in work:  # in this order: each goes to the first processor that is free
            heapq.heapreplace(loads, loads[0] + n)
        busiest = max(loads)
    return busiest * processors / (float(blocks.sum()) * heads)


#: ``busiest_share`` of batches of 8 KV heads whose contexts are log-normal (standard deviation of
#: the logarithm 1), means of 200 draws: a row for each number of requests, a column for each mean
#: context. Over the steps of val_moderate of 47 recordings 0.85 to 1.06 times that was seen
#: (tools/spans.py).
_HEADS = 8
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512)
_CONTEXTS = (250, 500, 1000, 2000, 4000, 8000, 16000)
_TYPICAL: tuple[tuple[float, ...], ...] = (
    (8.25, 4.12, 2.06, 2.06, 1.55, 1.31, 1.18),
    (3.34, 1.87, 1.99, 1.53, 1.30, 1.18, 1.10),
    (2.25, 1.25, 1.32, 1.36, 1.21, 1.18, 1.16),
    (1.68, 1.88, 1.49, 1.28, 1.21, 1.39, 1.39),
    (1.27, 1.25, 1.32, 1.31, 1.48, 1.51, 1.53),
    (1.68, 1.40, 1.32, 1.49, 1.55, 1.52, 1.54),
    (1.62, 1.48, 1.52, 1.53, 1.49, 1.52, 1.52),
    (1.55, 1.52, 1.52, 1.51, 1.50, 1.50, 1.50),
    (1.54, 1.54, 1.50, 1.47, 1.47, 1.46, 1.47),
    (1.57, 1.52, 1.50, 1.48, 1.45, 1.47, 1.48),
    (1.49, 1.46, 1.47, 1.46, 1.48, 1.46, 1.45),
    (1.36, 1.35, 1.39, 1.37, 1.41, 1.40, 1.40),
    (1.22, 1.27, 1.29, 1.28, 1.28, 1.27, 1.30),
    (1.12, 1.15, 1.14, 1.15, 1.16, 1.14, 1.16),
)


def typical_share(rows: npt.ArrayLike, mean_context: npt.ArrayLike) -> FloatArray:
    """``busiest_share`` to be expected in traffic, interpolated in logarithms; held beyond.

    ``rows`` are requests of 8 KV heads: with h heads, n requests make as many splits as n h / 8 of
    these. ``mean_context`` is in tokens.
    """
    from scipy.interpolate import RegularGridInterpolator

    n = np.clip(rows, _ROWS[0], _ROWS[-1])
    mean = np.clip(mean_context, _CONTEXTS[0], _CONTEXTS[-1])
    table = RegularGridInterpolator((np.log(_ROWS), np.log(_CONTEXTS)), np.array(_TYPICAL))
    return np.asarray(table((np.log(n), np.log(mean))))


def decode_contexts(recording: Recording) -> list[IntArray | None]:
    """The context tokens of each request of each step without a prefill; None where unknown.

    A request decodes one token in every step behind the one that made its first token. It is
    known when the requests that should be there are as many as were recorded, with as many context
    tokens (within one each); not for steps with prefill chunks.
    """
    s, q = recording.steps, recording.requests
    result: list[IntArray | None] = [None] * len(s)
    prefill = s.num_chunks > 0
    for phase in range(len(recording.phases)):
        mine = np.flatnonzero(q.phase == phase)
        steps = np.flatnonzero(s.phase == phase)
        with_prefill = steps[prefill[steps]]
        if not len(mine) or not len(with_prefill):
            continue
        # the last prefill whose result came before the client had the first token
        at = np.searchsorted(s.update_s[with_prefill], q.first_token_s[mine]) - 1
        first = np.where(at >= 0, with_prefill[np.maximum(at, 0)], len(s))
        prompt, output = q.prompt_tokens[mine], q.output_tokens[mine]
        for k in steps[~prefill[steps]].tolist():
            behind = k - first
            there = (behind >= 1) & (behind < output)
            contexts = prompt[there] + behind[there] - 1
            if len(contexts) != s.decodes[k] or not len(contexts):
                continue
            if abs(int(contexts.sum()) - int(s.decode_context_tokens[k])) <= len(contexts):
                result[k] = contexts.astype(np.int64)
    return result


def context_of_traffic(
    recording: Recording, kv_heads: int, part: float | None = None
) -> FloatArray:
    """Context tokens of each step, as those of a batch of traffic that takes as long; shape (n,).

    Those of steps with prefill chunks, on GPUs without FlashAttention 3, and where the contexts of
    the single requests are not known, are as recorded. ``kv_heads`` are those on each GPU; ``part``
    of the time, by default ``PART``, goes with the busiest processor.
    """
    part = PART if part is None else part
    s = recording.steps
    total = s.decode_context_tokens.astype(float)
    processors = _PROCESSORS.get(recording.server.gpu)
    if processors is None or not len(recording.requests):
        return total
    known = decode_contexts(recording)
    share = np.ones(len(s))
    first = np.empty(0, dtype=np.int64)  # the contexts that the present share was worked out for
    for k, contexts in enumerate(known):
        if contexts is None:
            first = np.empty(0, dtype=np.int64)
            continue
        if len(contexts) == len(first):
            grown = contexts - first
            if grown[0] < _STEPS and (grown == grown[0]).all():
                share[k] = share[k - 1]
                continue
        share[k] = busiest_share(contexts, kv_heads, processors)
        first = contexts
    m = np.array([c is not None for c in known])
    rows = s.decodes[m]
    usual = typical_share(rows * kv_heads / _HEADS, total[m] / rows)
    total[m] *= (1 - part + part * share[m]) / (1 - part + part * usual)
    return total
