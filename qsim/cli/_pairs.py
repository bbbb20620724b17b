"""Values of options that are ``KEY=VALUE`` pairs between commas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qsim.bounds import shown
from qsim.errors import ScenarioError

__all__ = ["read_pairs"]


def read_pairs(text: str, where: str, known: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Key, value, and what to call it in an error, of each pair.

    Parameters
    ----------
    where : str
        The option with its text, for errors.
    known : sequence of str
        Keys with underscores; a text may have dashes for them, as options do.

    Raises
    ------
    ScenarioError
        If something is no pair, or a key is unknown or given twice.
    """
    from qsim.checks import near_names

    seen: set[str] = set()
    for pair in text.split(","):
        word, equals, value = (part.strip() for part in pair.partition("="))
        key, word = word.replace("-", "_"), word.replace("_", "-")
        if not equals or not value:
            raise ScenarioError(f"{where}: {shown(pair)} is no KEY=VALUE pair")
        if key not in known:
            near = near_names(word, [k.replace("_", "-") for k in known])
            raise ScenarioError(f"{where}: unknown key {shown(word)}; {near}")
        if key in seen:
            raise ScenarioError(f"{where}: {word} is given twice")
        seen.add(key)
        yield key, value, f"{where}: {word}"
