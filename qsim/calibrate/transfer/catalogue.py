"""The transferred profiles that come with qsim."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.catalog.gpus import gpu_type
from qsim.catalog.methods import METHODS, check, find_method
from qsim.catalog.models import ARCHITECTURES, load_model
from qsim.errors import ScenarioError
from qsim.profiles.lookup import SHARDED_FOLDER, list_profiles, load_profile
from qsim.profiles.schema import Profile

GPUS = ("a100_sxm", "h100_sxm", "h200_sxm")
#: tensor-parallel sizes that a study compares
SHARDED = (2, 4)


def runs(gpu: str, model: str, method: str, tensor_parallel_size: int) -> str | None:
    """Why vLLM does not run this; None if it does."""
    known = load_model(model, dummy_weights=True)
    return check(find_method(method), known, gpu_type(gpu), tensor_parallel_size)


def sizes(gpu: str, model: str) -> tuple[int, ...]:
    """Tensor-parallel sizes that plans choose among: up to 4 GPUs (2 on H200) for the 70B model."""
    if model != "llama-3.1-70b":
        return (1,)
    return (1, 2) if gpu == "h200_sxm" else (1, 2, 4)


def other_sizes(gpu: str, model: str) -> tuple[int, ...]:
    """Those that let a study compare tensor parallelism with replicas, beside :func:`sizes`."""
    return tuple(size for size in SHARDED if size not in sizes(gpu, model))


def _transferred(
    teacher: Teacher,
    sizes_of: Callable[[str, str], tuple[int, ...]],
    progress: Callable[[str], None] | None,
) -> Iterator[Profile]:
    """What runs at the sizes of each GPU and model, and was not measured."""
    measured = {e.id for e in list_profiles() if not load_profile(e.id).transferred}
    for gpu, model, method in itertools.product(GPUS, ARCHITECTURES, METHODS):
        for size in sizes_of(gpu, model):
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


def write_all(
    teacher: Teacher, folder: Path, progress: Callable[[str], None] | None = None
) -> list[Profile]:
    """Write them all below ``folder``; take away transferred ones that are no longer made."""
    made = {folder / f"{p.id}.json": p for p in _transferred(teacher, sizes, progress)}
    sharded = folder / SHARDED_FOLDER
    others = _transferred(teacher, other_sizes, progress)
    made |= {sharded / f"{p.id}.json": p for p in others}
    for path in folder.rglob("*.json"):
        base = sharded if path.is_relative_to(sharded) else folder
        old = path not in made and len(path.relative_to(base).parts) in (3, 4)
        if old and Profile.load(path).transferred:
            path.unlink()
    for path, profile in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.save(path)
    return list(made.values())
