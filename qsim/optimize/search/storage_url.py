"""Storage URLs in messages: without user, password and secret parameters."""

from __future__ import annotations

import re

__all__ = ["shown_storage", "without_password"]

_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")
#: parameters of a URL that are secrets
_SECRET = re.compile(r"([?&;][^=&;]*(?:pass|pwd|secret|token|key)[^=&;]*=)[^&;#\s]*", re.IGNORECASE)


def shown_storage(where: object) -> str:
    """A storage for a message: a URL without user, password and secret parameters."""
    text = str(where)
    if "://" not in text:
        return text
    # to the last @: a password that was not quoted may hold one, and a slash
    scheme, _, rest = text.partition("://")
    if "@" in rest:
        text = f"{scheme}://***@{rest.rpartition('@')[2]}"
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def without_password(message: str, where: str) -> str:
    """A driver's message about a storage, without its user, password and secret parameters."""
    from urllib.parse import unquote

    message = message.replace(where, shown_storage(where))
    if "://" in where and "@" in where:
        given = where.partition("://")[2].rpartition("@")[0]
        for part in {given, *given.split(":", 1)}:
            for form in (part, unquote(part)):
                if len(form) > 1:
                    message = message.replace(form, "***")
    for match in _SECRET.finditer(where):
        secret = match[0][len(match[1]) :]
        if len(secret) > 1:
            message = message.replace(secret, "***")
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***@", message))
