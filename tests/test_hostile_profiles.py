"""A profile may be anybody's: what is refused when one is loaded, each with a line of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qsim.errors import ProfileError
from qsim.profiles.schema import Profile
from tests.cli.helpers import fails, qsim
from tests.make_profile import make_profile

NAMES = [
    "x\ntouch PWNED #",
    "../../../escaped/m",
    "/tmp/x",
    "a..b",
    "..",
    ".hidden",
    "-o",
    "",
    "UPPER",
    "a b",
    "a/b",
    "$x^2$",
    "\x1b[31mred",
    "a\u202eb",
    "é",
    "x" * 101,
    7,
    None,
    ["a"],
]


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good profile's data but for one field."""
    data: dict[str, Any] = json.loads(json.dumps(make_profile().to_dict()))
    *outer, last = path.split(".")
    part = data
    for key in outer:
        part = part[key]
    part[last] = value
    return data


@pytest.mark.parametrize("field", ["gpu", "model", "method"])
@pytest.mark.parametrize("name", NAMES)
def test_names_by_pattern(field: str, name: Any) -> None:
    with pytest.raises(ProfileError, match=rf"identity\.{field} is .*; must be a name") as e:
        Profile.from_dict(changed(f"identity.{field}", name), "p.json")
    assert len(str(e.value).splitlines()) == 1
    assert "\x1b" not in str(e.value)


@pytest.mark.parametrize("name", ["a", "h200_sxm", "fp8-w8a8+kv-fp8", "qwen2.5-0.5b", "x" * 100])
def test_names_that_are_taken(name: str) -> None:
    assert Profile.from_dict(changed("identity.method", name)).identity.method == name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("identity.tensor_parallel_size", 0, ">= 1 and <= 1024"),
        ("identity.tensor_parallel_size", -3, ">= 1"),
        ("identity.tensor_parallel_size", 10**30, "<= 1024"),
        ("identity.tensor_parallel_size", True, "must be a whole number"),
        ("identity.tensor_parallel_size", 1.0, "must be a whole number"),
        ("identity.tensor_parallel_size", "1", "must be a whole number"),
        ("identity.notes", ["a\nb"], r"identity\.notes\[0\] is .*without control characters"),
        ("identity.vllm_args", ["--trust-remote-code"], "options that decide how the model"),
        ("identity.vllm_args", ["--dtype", "x\ny"], "without control characters"),
        ("identity.architecture", {"a": math.nan}, "numbers must be finite"),
        ("identity.architecture", {"a": 10**100}, "must be within 64 bits"),
        ("identity.colour", "red", r"identity: unknown field 'colour'; known: gpu, model"),
        ("host.result_ms", 1e300, r"host\.result_ms is 1e\+300; must be .*at most 1e\+07"),
        ("host.result_ms", math.inf, "finite"),
        ("host.result_ms", -1, ">= 0"),
        ("host.schedule_ms", [1.0], "must be a list of 2 values"),
        ("latency.decode.base_ms", [1.0, 1e300, 1.0, 1.0], r"base_ms\[1\] is 1e\+300"),
        ("latency.decode.base_ms", [1.0, 0.0, 1.0, 1.0], "> 0"),
        ("latency.decode.base_ms", [math.nan] * 4, r"base_ms\[0\] is nan"),
        ("latency.graph_sizes", list(range(1, 20_000)), "graph_sizes is a list of 19999"),
        ("latency.eager.ms_per_pair", 1e300, "ms_per_pair is"),
        ("frontend.receive_ms", "2", "must be a number"),
        ("power.busy_w", 1e300, r"at most 1e\+06"),
        ("memory.num_gpu_blocks", 10**15, "num_gpu_blocks is"),
        ("memory.num_gpu_blocks", 1, ">= 2"),
        ("memory.block_size", 10**9, "block_size is"),
        ("engine.max_num_batched_tokens", 8 * 10**12, "<= 1048576"),
        ("engine.max_num_seqs", 10**9, "<= 131072"),
        ("fit_error", {"worst_mean": math.nan}, "numbers must be finite"),
        ("fit_error", {"worst_mean": "big"}, r"fit_error\.worst_mean is 'big'; must be a number"),
        ("fit_error", {"phases": [1]}, r"fit_error\.phases is \[1\]; must be an object"),
        ("fit_error", {"phases": {"a": {"b": 1}}}, r"phases\.a\.b is 1; must be an object"),
        ("fit_error", [], "must be an object"),
        ("measured_range", {"decode_rows": 5}, "decode_rows is 5; must be a list"),
        ("measured_range", {"decode_rows": ["a", "b"]}, "must be a whole number"),
        ("measured_range", {"step_tokens": []}, "must be a list of 2 values"),
        ("quality", {"a": {"b": math.inf}}, "quality holds inf"),
        ("quality", [], "must be an object"),
    ],
)
def test_values_by_range(path: str, value: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as e:
        Profile.from_dict(changed(path, value), "p.json")
    assert str(e.value).startswith("p.json: ")
    assert len(str(e.value).splitlines()) == 1
    assert len(str(e.value)) < 600


def test_a_command_that_loads_one_says_it_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(changed("identity.method", "x\ntouch PWNED #")))
    for command in (("profiles", "show", path), ("simulate", "azure-conv-2023", "--profile", path)):
        result = qsim(*command)
        fails(result, 2, r"identity.method is 'x\ntouch PWNED #'")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"schema": NaN}', "[]", "{}"], ids=lambda v: v[:9]
)
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ProfileError, match=r"p\.json: "):
        Profile.load(tmp_path / "p.json")


def test_shipped_profiles_need_no_check_because_they_pass_it() -> None:
    from qsim.profiles.lookup import list_profiles, load_profile

    entries = list_profiles()
    assert len(entries) > 100
    for entry in entries:
        checked = Profile.load(entry.path)
        assert load_profile(entry.id) == checked
        assert load_profile(entry.id).to_dict() == checked.to_dict()
        assert json.dumps(load_profile(entry.id).to_dict()) == json.dumps(checked.to_dict())
