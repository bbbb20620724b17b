"""The package as users get it: public names, and a wheel with everything in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import qsim

ROOT = Path(__file__).parent.parent


def test_public_names() -> None:
    for name in ("load_trace", "load_profile", "list_profiles", "simulate", "plan", "Trace",
                 "Profile", "EngineOptions", "Slo", "SimulationResult", "QsimError"):  # fmt: skip
        assert name in qsim.__all__
    for name in qsim.__all__:
        assert getattr(qsim, name) is not None
    assert set(qsim.__all__) <= set(dir(qsim))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = qsim.no_such_name


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == qsim.__version__


def test_import_is_light() -> None:
    code = "import qsim, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "scipy", "sklearn", "optuna", "simpy", "matplotlib", "click", "yaml"}
    assert not heavy & set(done.stdout.split())


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.slow
def test_the_wheel_is_complete(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("setuptools is older than what builds the package: run make test")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "qsim", source / "qsim", ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", tmp_path, source],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("qsim-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {p.relative_to(source).as_posix() for p in (source / "qsim").rglob("*") if p.is_file()}
    assert files <= packed, f"not in the wheel: {sorted(files - packed)}"
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert not any(name.startswith("tests/") for name in packed)
