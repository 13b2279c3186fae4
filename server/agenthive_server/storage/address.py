"""The URLs of databases: PostgreSQL's told apart from others, all shown without what must stay secret."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, urlsplit

SCHEMES: Final = ("postgresql://", "postgres://")

_SECRET: Final = re.compile(r"(?<=[?&])((?:ssl_?)?password=)[^&]*")


def is_postgres(url: str) -> bool:
    """Whether a store URL is one of PostgreSQL."""
    return url.startswith(SCHEMES)


def shown(url: str) -> str:
    """Return a URL for people: without user, password and parameters."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def masked(url: str) -> str:
    """Return a URL with everything but its passwords."""
    scheme, _, rest = url.partition("://")
    place, mark, query = rest.partition("?")
    who, at, where = place.rpartition("@")
    user, colon, _ = who.partition(":")
    return f"{scheme}://{user}{colon and ':***'}{at}{where}{mark}" + _SECRET.sub(r"\1***", mark + query)[len(mark) :]


def named_schema(url: str) -> str:
    """Return the schema a URL asks for by `search_path`, empty when it asks for none."""
    found = parse_qs(urlsplit(url).query).get("search_path", [""])[-1]
    return found.partition(",")[0].strip().strip('"')
