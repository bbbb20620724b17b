"""The transferred profiles that come with qsim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.catalog.gpus import gpu_type
from qsim.catalog.methods import METHODS, check, find_method
from qsim.catalog.models import ARCHITECTURES, load_model
from qsim.errors import ScenarioError
from qsim.profiles.lookup import SHARDED_FOLDER, list_profiles, load_profile
from qsim.profiles.schema import Profile

__all__ = ["GPUS", "runs", "sharded_profiles", "sizes", "transferred_profiles", "write_all"]

GPUS = ("a100_sxm", "h100_sxm", "h200_sxm")


def runs(gpu: str, model: str, method: str, tensor_parallel_size: int) -> str | None:
    """Why vLLM does not run this; None if it does."""
    known = load_model(model, dummy_weights=True)
    return check(find_method(method), known, gpu_type(gpu), tensor_parallel_size)


def sizes(model: str) -> tuple[int, ...]:
    """Tensor-parallel sizes that profiles are shipped for, where the model fits."""
    return (1, 2, 4) if model == "llama-3.1-70b" else (1,)


def transferred_profiles(
    teacher: Teacher, progress: Callable[[str], None] | None = None
) -> Iterator[Profile]:
    """Every GPU, model, method and size that runs and was not measured.

    Sizes above the smallest that fits are given up to 4 GPUs (2 on H200).
    """
    measured = {e.id for e in list_profiles() if not load_profile(e.id).transferred}
    for gpu in GPUS:
        for model in ARCHITECTURES:
            for method in METHODS:
                for size in sizes(model):
                    if gpu == "h200_sxm" and size > 2:
                        continue
                    tp = f"/tp{size}" if size > 1 else ""
                    id = f"{gpu}/{model}/{method}{tp}"
                    if id in measured or runs(gpu, model, method, size) is not None:
                        continue
                    if progress is not None:
                        progress(id)
                    try:
                        yield transfer(teacher, gpu, model, ARCHITECTURES[model], method, size)
                    except ScenarioError:
                        continue  # too little is left for the KV cache


#: tensor-parallel sizes that a study compares
SHARDED = (2, 4)


def sharded_profiles(
    teacher: Teacher, progress: Callable[[str], None] | None = None
) -> Iterator[Profile]:
    """Tensor-parallel servers that run and are not among the listed profiles.

    They let a study compare tensor parallelism with replicas; plans do not choose among them.
    """
    listed = {e.id for e in list_profiles()}
    for gpu in GPUS:
        for model in ARCHITECTURES:
            for method in METHODS:
                for size in SHARDED:
                    id = f"{gpu}/{model}/{method}/tp{size}"
                    if id in listed or runs(gpu, model, method, size) is not None:
                        continue
                    if progress is not None:
                        progress(id)
                    try:
                        yield transfer(teacher, gpu, model, ARCHITECTURES[model], method, size)
                    except ScenarioError:
                        continue  # too little is left for the KV cache


def write_all(
    teacher: Teacher, folder: Path, progress: Callable[[str], None] | None = None
) -> list[Profile]:
    """Write them all below ``folder``; take away transferred ones that are no longer made."""
    profiles = list(transferred_profiles(teacher, progress))
    made = {folder / f"{p.id}.json" for p in profiles}
    for path in folder.rglob("*.json"):
        old = path not in made and len(path.relative_to(folder).parts) in (3, 4)
        if old and Profile.load(path).transferred:
            path.unlink()
    sharded = list(sharded_profiles(teacher, progress))
    for base, some in ((folder, profiles), (folder / SHARDED_FOLDER, sharded)):
        for p in some:
            path = base / f"{p.id}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            p.save(path)
    return [*profiles, *sharded]
