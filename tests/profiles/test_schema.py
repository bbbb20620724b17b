"""A transferred profile says so, and what it was made of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from qsim.errors import ProfileError
from qsim.profiles.lookup import transfer_note
from qsim.profiles.schema import Profile, Transfer
from tests.cli.helpers import qsim
from tests.make_profile import make_profile


def transferred() -> Profile:
    p = make_profile(gpu="h100_sxm")
    return replace(
        p,
        identity=replace(p.identity, source="transferred"),
        transfer=Transfer(
            profiles=["h200_sxm/toy-1b/bf16"],
            tables=["h100_sxm/gemm"],
            error_percent={"decode": 6.0, "kv_tokens": 2.0},
        ),
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    p = transferred()
    p.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == p
    assert p.transferred


def test_a_measured_one_does_not_mention_it() -> None:
    p = make_profile()
    assert "transfer" not in p.to_dict()
    assert not p.transferred
    assert transfer_note(p) is None
    assert Profile.from_dict(p.to_dict()) == p


def test_the_note_names_the_errors_and_the_calibration_that_removes_them() -> None:
    note = transfer_note(transferred())
    assert note is not None
    assert "decode 6%, kv tokens 2%" in note
    assert "qsim calibrate run --model toy-1b --dummy-weights --methods bf16 --out DIR" in note
    assert "h100_sxm" in note


def test_it_is_shown(tmp_path: Path) -> None:
    transferred().save(tmp_path / "p.json")
    text = qsim("profiles", "show", tmp_path / "p.json").stdout
    assert "source             transferred; vLLM" in text
    assert "from h200_sxm/toy-1b/bf16, h100_sxm/gemm" in text
    assert "decode 6.000, kv_tokens 2.000" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer": None}, "identity.source is 'transferred'; must be 'measured'"),
        (
            {"transfer": {"error_percent": {"decode": -1.0}}},
            "decode is -1.0; must be a number, finite and >= 0",
        ),
        (
            {"transfer": {"error_percent": {}}},
            r"transfer.error_percent is \{\}; must be an object of 1 to",
        ),
        ({"transfer": {"error_percent": {"decode": "7"}}}, "error_percent.decode is '7'; must be"),
        ({"transfer": {"tables": "gemm"}}, r"transfer\.tables is 'gemm'; must be a list"),
        ({"transfer": []}, r"transfer is \[\]; must be an object"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    data = json.loads(json.dumps(transferred().to_dict()))
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ProfileError, match=message):
        Profile.from_dict(data)


def test_a_measured_one_with_a_transfer_is_refused() -> None:
    data = make_profile().to_dict()
    transfer = transferred().transfer
    assert transfer is not None
    data["transfer"] = asdict(transfer)
    with pytest.raises(ProfileError, match=r"identity\.source is 'measured'"):
        Profile.from_dict(data)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"worst_energy": 1443235.1}, r"p\.json: not written.*worst_energy is 1443235\.1; must be"),
        ({"worst_p99": float("nan")}, r"p\.json: not written.*holds NaN; numbers must be finite"),
    ],
)
def test_what_nobody_could_read_is_not_written(
    stated: dict[str, float], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    make_profile().save(path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match=message):
        replace(make_profile(), fit_error=stated).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
