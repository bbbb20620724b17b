"""What a model's name says: which model it is, its kin and its size."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

#: beginnings of names -> lineage: models of one lineage share an architecture and training line
_LINEAGES = (
    ("llama-2", "llama-2"),
    ("llama-3", "llama-3"),
    ("deepseek-r1-distill-llama", "llama-3"),
    ("deepseek-r1-distill-qwen", "qwen2"),
    ("qwen-", "qwen"),
    ("qwen1.5", "qwen2"),
    ("qwq", "qwen2"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("mixtral", "mistral"),
    ("mistral", "mistral"),
    ("ministral", "mistral"),
    ("internlm2", "internlm2"),
    ("gemma", "gemma"),
    ("glm", "glm"),
    ("granite", "granite"),
    ("nemotron", "nemotron"),
    ("phi", "phi"),
    ("minimax", "minimax"),
    ("deepseek-r1-0528", "deepseek-v3"),
    ("deepseek-v3", "deepseek-v3"),
    ("wizardcoder", "llama-2"),
    ("codellama", "llama-2"),
)
#: sizes that the name does not say, in billions of parameters
_SIZES = {
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141.0,
    "mistral-nemo": 12.2,
    "deepseek-r1-0528": 671.0,
    "llama-4-scout": 109.0,
    "phi-4-mini": 3.8,
    "phi-4-multimodal": 5.6,
    "phi-4": 14.7,
    "minimax-m2.5": 230.0,
}
_TAIL = re.compile(r"-(instruct|chat|it|hf|base)(?=-|$)")


@dataclass(frozen=True)
class ModelKey:
    """A model as the table knows it."""

    #: Name in lower case without the words that tell base from instruct.
    id: str
    #: "" if it is not known.
    lineage: str
    #: Billions of parameters; None if the name does not say.
    size_b: float | None

    @property
    def size_class(self) -> str:
        """One of ``<3B``, ``3-20B``, ``20-50B``, ``50B+``; ``?`` if unknown."""
        if self.size_b is None:
            return "?"
        for limit, name in ((3, "<3B"), (20, "3-20B"), (50, "20-50B")):
            if self.size_b < limit:
                return name
        return "50B+"


def model_key(name: str) -> ModelKey:
    """Read a model's name, with or without its owner: ``meta-llama/Llama-3.1-8B-Instruct``.

    Base and instruction-tuned models count as one: published numbers mix them.

    >>> model_key("meta-llama/Meta-Llama-3.1-8B-Instruct")
    ModelKey(id='llama-3.1-8b', lineage='llama-3', size_b=8.0)
    """
    text = name.rsplit("/", 1)[-1].strip().lower().removeprefix("meta-")
    text = _TAIL.sub("", text)
    lineage = next((line for start, line in _LINEAGES if text.startswith(start)), "")
    size = next((s for start, s in _SIZES.items() if text.startswith(start)), None)
    if size is None:
        found = re.findall(r"(?<![\d.a-z])(\d+(?:\.\d+)?)b(?![a-z])", text)
        size = float(found[0]) if found and float(found[0]) > 0 else None
    return ModelKey(text, lineage, size)


def unknown_note(name: str, known: Iterable[str]) -> str:
    """What to know of a model that neither the table nor its name tells; "" if they do."""
    key, models = model_key(name), sorted({model_key(m).id for m in known})
    if key.lineage or key.id in models:
        return ""
    near = difflib.get_close_matches(key.id, models, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    size = "" if key.size_b else ", of any size: its name does not tell its own"
    return (
        f"model {name!r} is not known{hint} Nothing was published of it or of its relatives: what "
        f"follows is estimated from {len(models)} other models{size}"
    )
