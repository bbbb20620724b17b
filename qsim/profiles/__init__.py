"""Profiles: their schema and checks, the shipped files, and how one is found."""

from __future__ import annotations

from qsim.profiles.lookup import (
    ProfileEntry,
    find_profiles,
    list_profiles,
    load_profile,
    stated_errors,
    transfer_note,
)
from qsim.profiles.schema import Profile

__all__ = [
    "Profile",
    "ProfileEntry",
    "find_profiles",
    "list_profiles",
    "load_profile",
    "stated_errors",
    "transfer_note",
]
