"""What is shipped of transferred profiles is what the catalogue lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from qsim.calibrate.transfer import catalogue
from qsim.calibrate.transfer.build import Teacher
from qsim.errors import ScenarioError
from qsim.profiles.lookup import list_profiles, list_sharded
from qsim.profiles.schema import Profile

FOLDER = Path(catalogue.__file__).parents[2] / "profiles"


def test_what_is_written_is_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [*list_profiles(), *list_sharded()]
    shipped = {e.path: p for e in entries if (p := Profile.load(e.path)).transferred}
    by_id = {p.id: p for p in shipped.values()}

    def transfer(
        _teacher: Teacher, gpu: str, model: str, _architecture: Any, method: str, size: int
    ) -> Profile:
        id = f"{gpu}/{model}/{method}" + (f"/tp{size}" if size > 1 else "")
        if id not in by_id:
            raise ScenarioError("no room for the KV cache")
        return by_id[id]

    monkeypatch.setattr(catalogue, "transfer", transfer)
    old = [tmp_path / base / "h200_sxm/old/bf16/tp2.json" for base in (".", "sharded")]
    for path in old:
        path.parent.mkdir(parents=True)
        next(iter(shipped.values())).save(path)
    made = catalogue.write_all(cast(Teacher, None), tmp_path)
    written = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.json")}
    assert written == {p.relative_to(FOLDER): p.read_bytes() for p in shipped}
    assert len(made) == len(written)
