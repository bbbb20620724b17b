"""What a session's next prompt begins with, and what of it the prefix cache finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import qsim
from qsim.sim.fleet.history import with_history
from qsim.sim.scheduler.block_ids import prompt_block_ids
from qsim.traces import Trace
from qsim.traces.trace import HashIds, Turns

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"
BLOCK = 16


def trace_of(
    previous: list[int], prompt: list[int], output: list[int], ids: HashIds | None = None
) -> Trace:
    n = len(previous)
    turns = Turns(np.array(previous), np.full(n, 0.5))
    return Trace(np.arange(n) * 0.1, np.array(prompt), np.array(output), ids, turns=turns)


def test_hits_are_those_of_a_real_server() -> None:
    """First two turns of three sessions, as vLLM on an H200 answered them (``cached_tokens``)."""
    sessions = (((1088, 77), (1407, 177), 1152), ((575, 134), (922, 184), 704),
                ((1000, 24), (1300, 9), 1008))  # fmt: skip
    # of the third the answer ends with a block, whose last token is never computed
    previous = [-1, -1, -1, 0, 1, 2]
    prompt = [s[0][0] for s in sessions] + [s[1][0] for s in sessions]
    output = [s[0][1] for s in sessions] + [s[1][1] for s in sessions]
    run = qsim.simulate(trace_of(previous, prompt, output), PROFILE)
    cached = dict(zip(run.prompt_tokens.tolist(), run.cached_tokens.tolist(), strict=True))
    assert {p: cached[p] for p in prompt[:3]} == dict.fromkeys(prompt[:3], 0)
    assert [cached[s[1][0]] for s in sessions] == [s[2] for s in sessions]
    assert any("3 later turns of sessions 3 begin with prompt and answer" in n for n in run.notes)
    off = qsim.EngineOptions(enable_prefix_caching=False)
    run = qsim.simulate(trace_of(previous, prompt, output), PROFILE, options=off)
    assert not run.cached_tokens.any()
    assert not any("later turns" in note for note in run.notes)


def test_a_turn_that_leaves_the_answer_out_shares_the_prompt_and_one_that_is_shorter_nothing() -> (
    None
):
    trace = trace_of([-1, 0, 1], [1000, 1100, 400], [200, 50, 50])
    run = qsim.simulate(trace, PROFILE)
    assert run.cached_tokens.tolist() == [0, 1000 // 16 * 16, 0]
    assert any(
        "of 2 later turns of sessions 0 begin with prompt and answer of the turn before, by their "
        "lengths, 1 with its prompt alone, 1 with neither" in note
        for note in run.notes
    )


def test_ids_of_the_trace_say_what_prompts_share() -> None:
    """The trace's ids differ from the second block on: another conversation, however long."""
    ids = HashIds.from_lists([[1, 2], [1, 7, 8], [1, 7, 8, 9]], 512)
    trace = trace_of([-1, 0, 1], [1024, 1500, 2000], [100, 100, 100], ids)
    run = qsim.simulate(trace, PROFILE)
    # the third begins with all 1600 tokens of the second but the last one
    assert run.cached_tokens.tolist() == [0, 512, 1599 // 16 * 16]


def test_kv_aware_sends_a_turn_to_the_server_that_has_its_answer() -> None:
    previous, prompt, output = [-1] * 8, [900 + i for i in range(8)], [100] * 8
    for turn in range(1, 4):
        previous += [8 * (turn - 1) + i for i in range(8)]
        prompt += [prompt[8 * (turn - 1) + i] + 100 + 60 for i in range(8)]
        output += [100] * 8
    trace = trace_of(previous, prompt, output)
    hits = {}
    for router in ("kv-aware", "random"):
        run = qsim.simulate(trace, PROFILE, replicas=4, router=router)
        hits[router] = run.cached_tokens.sum()
        assert not any("no prefix ids" in note for note in run.notes)
    most = sum((p - 61) // 16 * 16 for p in prompt[8:])
    assert hits["random"] < hits["kv-aware"] <= most
    run = qsim.simulate(trace, PROFILE, replicas=4, router="session-affinity")
    assert run.cached_tokens.sum() == most


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Trace, list[list[int]]]:
    """A trace, and the tokens of each request's prompt and answer.

    Prompts begin with those of the turn before, with its prompt alone, or with a system prompt;
    with ids of all prompts, of a shared beginning only, or none. Without ids a turn that shares
    nothing is shorter than the prompt before it, as nobody else could tell.
    """
    kind = draw(st.sampled_from(["none", "all", "beginning"]))
    forks = draw(st.booleans())
    system = draw(st.sampled_from([32, 64]))
    number = 0

    def fresh(n: int) -> list[int]:
        nonlocal number
        number += n
        return list(range(number - n, number))

    beginning = fresh(system)
    previous: list[int] = []
    texts: list[list[int]] = []
    prompts: list[int] = []
    free: list[int] = []
    for i in range(draw(st.integers(1, 9))):
        before = draw(st.sampled_from([-1, *free])) if free else -1
        if before >= 0 and not forks:
            free.remove(before)
        how = draw(st.sampled_from(["both", "both", "prompt", "other"]))
        output = draw(st.integers(1, 90))
        start = [] if kind == "none" else list(beginning)
        if before < 0:
            prompt = start + fresh(draw(st.integers(1, 150)))
        elif how == "both":
            prompt = texts[before] + fresh(draw(st.integers(0, 90)))
        else:
            old = prompts[before]
            answer = len(texts[before]) - old
            if how == "prompt" and answer > 1:
                prompt = texts[before][:old] + fresh(draw(st.integers(1, answer - 1)))
            else:
                prompt = (start + fresh(max(1, old - len(start) - 1)))[: max(1, old - 1)]
        previous.append(before)
        prompts.append(len(prompt))
        texts.append(prompt + fresh(output))
        free.append(i)
    ids = None
    if kind == "all":
        size = draw(st.sampled_from([16, 64]))
        known: dict[tuple[int, ...], int] = {}
        rows = [
            [known.setdefault(tuple(t[: min(k + size, p)]), len(known)) for k in range(0, p, size)]
            for t, p in zip(texts, prompts, strict=True)
        ]
        ids = HashIds.from_lists(rows, size)
    elif kind == "beginning":
        rows = [[7] if t[:system] == beginning and p >= system else []
                for t, p in zip(texts, prompts, strict=True)]  # fmt: skip
        ids = HashIds.from_lists(rows, system)
    outputs = [len(t) - p for t, p in zip(texts, prompts, strict=True)]
    return trace_of(previous, prompts, outputs, ids), texts


@settings(max_examples=300, deadline=None)
@given(conversations())
def test_blocks_have_equal_ids_where_they_have_equal_texts(
    drawn: tuple[Trace, list[list[int]]],
) -> None:
    trace, texts = drawn
    named, _ = with_history(trace, [BLOCK])
    ids = named.hash_ids
    assert trace.turns is not None
    if ids is None:
        return
    tokens = ids.tokens if ids.tokens is not None else trace.prompt_tokens
    of = [
        list(prompt_block_ids(ids[i].tolist(), ids.block_tokens, BLOCK, int(tokens[i])))
        for i in range(len(trace))
    ]
    first: set[int] = set()
    for j, before in enumerate(trace.turns.previous.tolist()):
        for i in range(j):
            assert _leading(of[i], of[j], 1) <= _leading(texts[i], texts[j], BLOCK)
        if before < 0 or texts[j][: len(texts[before])] != texts[before]:
            continue
        # of several that continue one with ids for more than a block, the first knows all
        if before not in first or ids.block_tokens == BLOCK:
            blocks = len(texts[before]) // BLOCK
            assert _leading(of[before], of[j], 1) == blocks
        first.add(before)


def _leading(a: list[int], b: list[int], size: int) -> int:
    """How many leading parts of this size are whole and equal."""
    equal = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        equal += 1
    return equal // size
