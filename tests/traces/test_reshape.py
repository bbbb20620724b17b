"""Reshaping: the right requests and lengths, whole and in parts, in every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from qsim.cli import main
from qsim.errors import TraceError
from qsim.traces import HashIds, Trace, Turns, load_trace, shape, write_trace
from qsim.traces.parts import TraceParts
from qsim.traces.reshape import Reshaping
from qsim.traces.statistics import trace_statistics
from tests.traces.strategies import traces

PROFILE = ["--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8"]


def trace_of(n: int, prompt: int = 100) -> Trace:
    return Trace(np.arange(float(n)), np.full(n, prompt), np.full(n, 7), name="t")


def test_a_sample_keeps_the_share_and_repeats_with_its_seed() -> None:
    whole = trace_of(20_000)
    some = shape(whole, sample=0.1)
    assert len(some) == pytest.approx(2000, rel=0.1)
    assert some.arrival_s.tolist() == shape(whole, sample=0.1).arrival_s.tolist()
    assert some.arrival_s.tolist() != shape(whole, sample=0.1, seed=1).arrival_s.tolist()
    assert set(some.arrival_s.tolist()) < set(whole.arrival_s.tolist())
    assert len(shape(whole, sample=1.0)) == 20_000
    # merged traces are not thinned at the same places
    asked = Reshaping(sample=0.5)
    assert (
        asked.apply(whole, 0, 0).arrival_s.tolist() != asked.apply(whole, 0, 1).arrival_s.tolist()
    )
    with pytest.raises(TraceError, match=r"no request is left of a sample of 0\.001"):
        shape(trace_of(3), sample=0.001)


def test_a_sample_keeps_sessions_whole() -> None:
    n = 3000
    previous = np.where(np.arange(n) % 3 == 0, -1, np.arange(n) - 1)
    turns = Turns(previous, np.where(previous < 0, 0.0, 2.0))
    some = shape(replace(trace_of(n), turns=turns), sample=0.3)
    assert len(some) == pytest.approx(900, rel=0.15)
    assert some.turns is not None
    assert (some.turns.previous < 0).sum() * 3 == len(some)


def test_lengths_are_scaled_to_whole_tokens() -> None:
    trace = Trace(np.arange(3.0), np.array([1, 10, 333]), np.array([1, 7, 9]))
    half = shape(trace, scale_prompt=0.5, scale_output=2.0)
    assert half.prompt_tokens.tolist() == [1, 5, 166]
    assert half.output_tokens.tolist() == [2, 14, 18]
    assert shape(trace, scale_output=0.01).output_tokens.tolist() == [1, 1, 1]
    with pytest.raises(TraceError, match=r"prompt_tokens of 333 times 1e\+07 is more than"):
        shape(trace, scale_prompt=1e7)


@given(traces(with_ids=True, block_tokens=16), st.sampled_from([0.3, 0.5, 1.5, 2.0, 3.0]))
def test_what_prompts_share_is_scaled_with_them(trace: Trace, factor: float) -> None:
    assert trace.hash_ids is not None
    scaled = shape(trace, scale_prompt=factor)
    assert scaled.hash_ids is not None
    size = 16
    for i in range(len(trace)):
        assert len(scaled.hash_ids[i]) <= -(-int(scaled.prompt_tokens[i]) // size)
        for j in range(i):
            common = [_common(t, i, j) for t in (trace.hash_ids, scaled.hash_ids)]
            ends = min(len(scaled.hash_ids[i]), len(scaled.hash_ids[j]))
            # blocks that lie within what was shared, up to one that is cut
            assert common[1] <= np.ceil(common[0] * factor)
            assert common[1] >= min(np.floor(common[0] * factor - 1e-6), ends)


def _common(ids: HashIds, i: int, j: int) -> int:
    pairs = zip(ids[i].tolist(), ids[j].tolist(), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count


def test_twice_the_prompts_share_the_same_part() -> None:
    ids = HashIds.from_lists([[1, 2, 3, 4], [1, 2, 5, 6], [9, 2, 3, 4]], 512)
    trace = Trace(np.arange(3.0), np.full(3, 2000), np.ones(3), hash_ids=ids)
    before = trace_statistics(trace)
    for factor in (2.0, 4.0):
        after = trace_statistics(shape(trace, scale_prompt=factor))
        assert after["prefix_token_hit_rate"] == before["prefix_token_hit_rate"]
        assert after["hash_block_tokens"] == 512


def test_a_shared_prefix() -> None:
    trace = Trace(np.arange(4.0), np.array([600, 40, 100, 64]), np.ones(4))
    shared = shape(trace, shared_prefix=70)
    assert shared.hash_ids is not None
    assert shared.hash_ids.block_tokens == 64
    assert [shared.hash_ids[i].tolist() for i in range(4)] == [[0], [], [0], []]
    assert "less than 70 tokens cannot begin with the shared ones" in shared.meta["notes"][0]
    assert "notes" not in shape(trace, shared_prefix=40).meta
    with pytest.raises(TraceError, match="has prefix ids of its own"):
        shape(shared, shared_prefix=70)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample": 0.0}, "sample is 0.0; must be above 0 and at most 1"),
        ({"sample": 2.0}, "sample is 2.0"),
        ({"sample": float("nan")}, "sample is nan"),
        ({"scale_prompt": 0.0}, "scale_prompt is 0.0"),
        ({"scale_output": float("inf")}, "scale_output is inf"),
        ({"shared_prefix": 15}, "shared_prefix is 15; must be from 16 tokens"),
        ({"head": 0}, "head of 0"),
        ({"speed": -1.0}, "speed is -1.0"),
    ],
)
def test_what_cannot_be_asked(given: dict[str, float], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        Reshaping(**given)  # type: ignore[arg-type]


@given(
    traces(with_ids=False),
    st.integers(1, 5),
    st.sampled_from([None, 0.5, 0.9]),
    st.sampled_from([None, 0.5, 3.0]),
    st.sampled_from([None, 32]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([None, 10.0]),
    st.integers(0, 3),
)
def test_parts_get_what_the_whole_gets(
    trace: Trace, size: int, sample: float | None, scale: float | None, prefix: int | None,
    speed: float | None, head: int | None, start: float | None, seed: int,
) -> None:  # fmt: skip
    def pieces() -> TraceParts:
        cuts = range(0, len(trace), size)
        parts = (trace.take(np.arange(i, min(i + size, len(trace)))) for i in cuts)
        return TraceParts("t", parts, lambda _: 0.0)

    others = {"sample": sample, "scale_prompt": scale, "scale_output": scale,
              "shared_prefix": prefix}  # fmt: skip
    try:
        whole = shape(trace, start, None, speed, head, seed=seed, **others)
    except TraceError:
        with pytest.raises(TraceError):
            list(pieces().shaped(start, None, speed, head, seed=seed, **others))
        return
    found = list(pieces().shaped(start, None, speed, head, seed=seed, **others))
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "priority", "timeout_s"):
        values = getattr(whole, name)
        if values is not None:
            joined = np.concatenate([getattr(part, name) for part in found])
            assert joined.tolist() == values.tolist()
    if whole.hash_ids is not None:
        ids = [part.hash_ids[i].tolist() for part in found if part.hash_ids is not None
               for i in range(len(part))]  # fmt: skip
        assert ids == [whole.hash_ids[i].tolist() for i in range(len(whole))]


def run(*args: str) -> str:
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(5)
    paths = []
    for name in ("a.csv", "b.csv"):
        n = 400
        trace = Trace(np.sort(rng.uniform(0, 40, n)), rng.integers(50, 900, n),
                      rng.integers(5, 60, n))  # fmt: skip
        write_trace(trace, tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths[0], paths[1]


OPTIONS = ["--sample", "0.6", "--scale-prompt", "2", "--scale-output", "0.5", "--speed", "2",
           "--shared-prefix", "64", "--seed", "3"]  # fmt: skip


def test_every_command_takes_what_convert_writes(files: tuple[str, str], tmp_path: Path) -> None:
    one, other = files
    out = str(tmp_path / "out.parquet")
    pytest.importorskip("pyarrow")
    run("traces", "convert", one, out, *OPTIONS, "--merge", other)
    written = load_trace(out)
    assert len(written) > 1.5 * len(shape(load_trace(one), sample=0.6, seed=3))
    assert written.prompt_tokens.min() >= 100
    assert written.duration_s <= 20
    direct = json.loads(run("traces", "info", one, *OPTIONS, "--merge", other, "--json"))
    kept = json.loads(run("traces", "info", out, "--json"))
    for key in ("requests", "prompt_tokens_mean", "prefix_token_hit_rate", "iat_cv"):
        assert direct[key] == kept[key], key
    simulated = [
        json.loads(run("simulate", source, *PROFILE, *more, "--json", "-"))
        for source, more in ((one, [*OPTIONS, "--merge", other]), (out, []))
    ]
    for key in ("completed", "total_input_tokens", "mean_ttft_ms", "cached_tokens"):
        assert simulated[0][key] == simulated[1][key], key
    assert simulated[0]["cached_tokens"] > 0


def test_a_stream_is_reshaped_alike(files: tuple[str, str]) -> None:
    one, other = files
    both = [
        json.loads(run("simulate", one, *PROFILE, *OPTIONS, stream, "--json", "-"))
        for stream in ("--stream", "--no-stream")
    ]
    for key in ("completed", "total_input_tokens", "total_output_tokens", "cached_tokens"):
        assert both[0][key] == both[1][key]
    done = CliRunner().invoke(main, ["simulate", one, *PROFILE, "--merge", other, "--stream"])
    assert done.exit_code != 0
    assert "--merge needs the whole run" in done.stderr


def test_a_saved_scenario_gives_the_same(files: tuple[str, str], tmp_path: Path) -> None:
    one, other = files
    path = str(tmp_path / "s.yaml")
    first = run("simulate", one, *PROFILE, *OPTIONS, "--merge", other, "--save-scenario", path)
    assert run("simulate", "--scenario", path) == first
    swept = run("sweep", one, *PROFILE, *OPTIONS, "--merge", other, "--grid",
                "scale_output=0.5,1", "--jobs", "1")  # fmt: skip
    assert len(swept.splitlines()) == 3
    assert "error" not in swept.splitlines()[1]
