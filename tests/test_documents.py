"""Documents are read with bounds, and YAML is that of version 1.2."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from qsim.documents import parse_json, parse_yaml, read_json, read_yaml
from qsim.errors import ProfileError, ScenarioError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("'010'", "010"),
        ('"true"', "true"),
        ("=", "="),
    ],
)
def test_yaml_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    got = parse_yaml(f"a: {text}", "f")
    assert got == {"a": value}
    assert type(got["a"]) is type(value)


def test_yaml_nests_lists_and_mappings() -> None:
    text = "a: {b: [1, {c: d}], e: [[]]}\nf:\n- - x\n  - y\n- z\n"
    assert parse_yaml(text, "f") == {"a": {"b": [1, {"c": "d"}], "e": [[]]}, "f": [["x", "y"], "z"]}
    assert parse_yaml("", "f") is None
    assert parse_yaml("# only a comment\n", "f") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' comes twice"),
        ("a: {b: 1, b: 2}", "the key 'b' comes twice"),
        ("a: &x [1]\nb: *x", "line 2: has an alias"),
        ("a: !!python/object/apply:os.system [ls]", "has a tag"),
        ("a: !!int '3'", "has a tag"),
        ("1: 2", "the key 1 is not a text"),
        ("? [a]\n: 1", "is not a text"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("a: .inf", "numbers must be finite"),
        ("a: .NaN", "numbers must be finite"),
        ("a: 1e999", "too large"),
        ("a: " + "9" * 5000, "a whole number of 5000 digits"),
        ("a: " + "[" * 33 + "]" * 33, "nested deeper than 32"),
        ("[" * 100_000, "nested deeper than 32"),
        ("a: [", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: " + "x" * 300_000, "larger than 256 KiB"),
    ],
    ids=lambda v: v[:20],
)
def test_what_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as e:
        parse_yaml(text, "f.yaml")
    assert str(e.value).startswith("f.yaml: ")
    assert len(str(e.value)) < 500


def test_aliases_that_would_multiply_are_refused_at_once() -> None:
    levels = "\n".join(f"{c}: &{c} [{','.join(f'*{p}' for _ in range(9))}]"
                       for p, c in zip("abcdefgh", "bcdefghi", strict=True))  # fmt: skip
    start_s = time.process_time()
    with pytest.raises(ScenarioError, match="has an alias"):
        parse_yaml("a: &a [x,x,x]\n" + levels, "f")
    assert time.process_time() - start_s < 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('[{"b": {"c": 1, "c": 1}}]', "the key 'c' comes twice"),
        ("[NaN]", "numbers must be finite"),
        ("[-Infinity]", "numbers must be finite"),
        ("[1e999]", "too large"),
        ("9" * 5000, "a whole number of 5000 digits"),
        ("[" * 33 + "]" * 33, "nested deeper than 32"),
        ("[" * 1_000_000, "nested deeper than 32"),
        ('{"a":' * 1_000_000, "nested deeper than 32"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1] 2", "not JSON"),
    ],
    ids=lambda v: v[:20],
)
def test_what_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as e:
        parse_json(text, "f.json", ProfileError)
    assert str(e.value).startswith("f.json: ")


def test_json_within_the_bounds_is_what_the_library_reads() -> None:
    data = {"a": [1, -2.5, 1e300, "x\U0001f600", None, True], "b": {"": 18446744073709551615}}
    assert parse_json(json.dumps(data), "f") == data
    nested = json.loads("[" * 32 + "]" * 32)
    assert parse_json(json.dumps(nested), "f") == nested


def test_a_file_is_named_and_bounded(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ScenarioError, match="Is a directory"):
        read_json(tmp_path)
    with pytest.raises(ScenarioError, match="null byte"):
        read_json("a\0b")
    (tmp_path / "b").write_bytes(b"\xff[]")
    with pytest.raises(ScenarioError, match="is not UTF-8"):
        read_json(tmp_path / "b")
    (tmp_path / "big").write_bytes(b" " * 2000)
    with pytest.raises(ScenarioError, match="larger than 1 KiB"):
        read_json(tmp_path / "big", most=1024)
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "bom.yaml") == {"a": 1}


def test_a_file_without_an_end_is_not_read_whole() -> None:
    with pytest.raises(ScenarioError, match="larger than 16 MiB"):
        read_json("/dev/zero")
