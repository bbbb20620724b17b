"""Model architectures: known ones, config.json files, and folders for dummy weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qsim.catalog.methods import METHODS
from qsim.catalog.models import ARCHITECTURES, load_model, write_dummy
from qsim.errors import ScenarioError

LLAMA = ARCHITECTURES["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the model cards' safetensors metadata count them
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
    ],
)
def test_known_architectures_have_the_published_number_of_parameters(
    name: str, parameters: int
) -> None:
    a = load_model(name, dummy_weights=True).architecture
    assert a.linear_parameters + a.other_bytes() // 2 == parameters


def test_kv_bytes_per_token() -> None:
    a = load_model("Llama-3.1-8B", dummy_weights=True).architecture
    assert a.kv_bytes_per_token() == 131_072
    assert a.kv_bytes_per_token(1, 2) == 32_768
    assert a.kv_bytes_per_token(2, 16) == 131_072 // 8  # a head is kept whole


def config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    data = {k: v for k, v in {**LLAMA, **changes}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_a_folder_is_a_checkpoint(tmp_path: Path) -> None:
    folder = config(tmp_path / "My-Model", quantization_config={"quant_method": "awq", "bits": 4})
    model = load_model(str(folder))
    assert (model.id, model.source) == ("my-model", str(folder))
    assert model.quantization_config == {"quant_method": "awq", "bits": 4}
    assert model.architecture == load_model("llama-3.1-8b", dummy_weights=True).architecture
    assert load_model(str(folder / "config.json"), dummy_weights=True).source is None


def test_a_snapshot_in_the_cache_has_the_name_of_its_model(tmp_path: Path) -> None:
    folder = config(tmp_path / "models--org--Name-8B" / "snapshots" / "0e9e39f249a16976918f")
    assert load_model(str(folder)).id == "name-8b"


def test_what_config_json_may_leave_out(tmp_path: Path) -> None:
    folder = config(tmp_path / "m", head_dim=..., num_key_value_heads=None, model_type="qwen2")
    a = load_model(str(folder)).architecture
    assert a.head_dim == LLAMA["hidden_size"] // LLAMA["num_attention_heads"]
    assert a.num_key_value_heads == LLAMA["num_attention_heads"]
    assert a.qkv_bias


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_local_experts": 8}, "num_local_experts is 8; mixture-of-experts"),
        ({"hidden_size": ...}, "hidden_size is None; must be a whole number >= 1"),
        ({"vocab_size": "many"}, "vocab_size is 'many'; must be a whole number >= 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; must be"),
        ({"intermediate_size": True}, "intermediate_size is True; must be"),
    ],
)
def test_a_config_that_is_not_a_dense_decoder(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = config(tmp_path / "m", **changes)
    with pytest.raises(ScenarioError, match=r"config.json: ") as caught:
        load_model(str(folder))
    assert words in str(caught.value)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"cannot read .*config.json: No such file"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ScenarioError, match="not JSON"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ScenarioError, match="must hold a JSON object"):
        load_model(str(tmp_path))


def test_an_architecture_alone_needs_dummy_weights() -> None:
    with pytest.raises(ScenarioError, match=r"architecture without weights: add --dummy-weights"):
        load_model("llama-3.1-8b")
    with pytest.raises(ScenarioError, match=r"must be one of llama-3.1-8b"):
        load_model("llama-3.1-9b")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.id)
def test_a_dummy_folder_is_a_model_in_the_method_s_format(tmp_path: Path, method: Any) -> None:
    model = load_model("qwen2.5-14b", dummy_weights=True)
    small = type(model)(
        model.id, {**model.config, "vocab_size": 64, "quantization_config": {"old": 1}},
        model.architecture.__class__(**{**vars(model.architecture), "vocab_size": 64}), None,
    )  # fmt: skip
    written = write_dummy(small, tmp_path / "m", method.config)
    assert written == json.loads((tmp_path / "m" / "config.json").read_text())
    assert written.get("quantization_config") == method.config
    read = load_model(str(tmp_path / "m"))
    assert read.architecture == small.architecture
    assert read.quantization_config == method.config
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(64))
