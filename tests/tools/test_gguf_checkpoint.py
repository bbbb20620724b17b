"""What ``tools/gguf_checkpoint.py`` does to tensors; the whole needs a GGUF file."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.errors import ScenarioError
from tools.gguf_checkpoint import config_of, name_of, rounded_int8, unpermuted


def test_names() -> None:
    assert name_of("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert name_of("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert name_of("token_embd.weight") == "model.embed_tokens.weight"
    for name in ("blk.0.ssm_a.weight", "output.bias", "rope_freqs.weight"):
        with pytest.raises(ScenarioError, match="none of a Llama model"):
            name_of(name)


@pytest.mark.parametrize("heads", [1, 3])
def test_rotations_come_back_to_halves(heads: int) -> None:
    """GGUF puts rows 0, 1, ... of the halves of a head in turn: 0, 4, 1, 5, 2, 6, 3, 7."""
    rows = np.arange(heads * 8)
    stored = np.concatenate([h * 8 + np.array([0, 4, 1, 5, 2, 6, 3, 7]) for h in range(heads)])
    weights = np.tile(stored[:, None], (1, 2))
    assert (unpermuted(weights, heads)[:, 0] == rows).all()


def test_int8_is_the_nearest_multiple_of_a_channel_s_scale() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    weights[2] = 0
    codes, scale = rounded_int8(weights)
    assert codes.dtype == np.int8
    assert scale.shape == (5, 1)
    assert np.abs(codes[[0, 1, 3, 4]]).max(axis=1).tolist() == [127] * 4
    assert (np.abs(codes * scale - weights) <= scale / 2 * 1.001).all()
    assert not codes[2].any()


def test_another_architecture_is_refused() -> None:
    class Field:
        def contents(self) -> str:
            return "mamba"

    class Reader:
        fields = {"general.architecture": Field()}  # noqa: RUF012

    with pytest.raises(ScenarioError, match="architecture is 'mamba'; must be 'llama'"):
        config_of(Reader(), True)
