"""Settings of plugins: from what people write to the plugin's own type, and back without its secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agenthive_server.kernel.errors import BadRequest

from .registration import Registration

HIDDEN: Final = "***"
"""What is shown in the place of a secret."""

Raw = Mapping[str, Any]
"""Settings as they were written: names and plain values."""


def configured(registration: Registration[Any], raw: Raw) -> Any:
    """Return the settings of a plugin. Raises `BadRequest` naming the field that is unknown or does not fit."""
    kind = registration.config
    known = _names(kind)
    unknown = sorted(raw.keys() - known)
    if unknown:
        some = ", ".join(sorted(known)) or "none"
        raise BadRequest(
            f"plugin {registration.name} has no such setting; known are {some}", field=f"config.{unknown[0]}"
        )
    try:
        return msgspec.convert(dict(raw), kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        field = place.rstrip("`").removeprefix("$").removeprefix(".")
        inner = re.search(r"unknown field `(.+?)`", message)
        if inner:
            field = f"{field}.{inner[1]}" if field else inner[1]
        raise BadRequest(message, field=f"config.{field}" if field else "config") from None
    except (TypeError, ValueError) as error:
        # A check of the plugin's own, in `__post_init__`.
        raise BadRequest(str(error)[:500], field="config") from None


def shown(registration: Registration[Any], raw: Raw) -> dict[str, Any]:
    """Return the settings in effect with their defaults, secrets hidden; as written where they do not fit."""
    try:
        built: Any = msgspec.to_builtins(configured(registration, raw))
    except BadRequest:
        built = dict(raw)
    return {name: _hidden(value) if name in secrets(registration) else value for name, value in built.items()}


def with_secrets(registration: Registration[Any], raw: Raw, present: Raw) -> dict[str, Any]:
    """Return new settings, with the present secrets where they are given as hidden."""
    kept = {
        name: present[name]
        for name in secrets(registration)
        if name in present and name in raw and raw[name] == _hidden(present[name])
    }
    dropped = {name for name in secrets(registration) if raw.get(name) == HIDDEN and name not in kept}
    return {**{name: value for name, value in raw.items() if name not in dropped}, **kept}


def secrets(registration: Registration[Any]) -> frozenset[str]:
    """Return the names of the settings that are marked as secret."""
    fields = getattr(msgspec.inspect.type_info(registration.config), "fields", ())
    return frozenset(
        field.encode_name
        for field in fields
        if isinstance(field.type, msgspec.inspect.Metadata) and (field.type.extra or {}).get("secret")
    )


def _names(kind: type) -> frozenset[str]:
    return frozenset(field.encode_name for field in getattr(msgspec.inspect.type_info(kind), "fields", ()))


def _hidden(value: Any) -> Any:
    """Return what stands for a secret. One that is not set is shown as such; of several it shows how many."""
    if isinstance(value, Mapping):
        return dict.fromkeys(value, HIDDEN)
    if isinstance(value, list | tuple):
        return [HIDDEN for _ in value]
    return HIDDEN if value else value
