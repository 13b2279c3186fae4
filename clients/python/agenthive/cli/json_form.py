"""Messages as JSON for scripts: protobuf JSON with the names of the contract, content readable where it can be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

_OURS: Final = "agenthive."


def as_json(value: object) -> Any:
    """Return what `json.dumps` takes: messages by the rules of protobuf JSON, all fields there, lists of them too.

    Bytes are shown as what they are: JSON as JSON where the payload says so, UTF-8 as text, anything else as base64
    in a field of the same name with `_base64` after it.
    """
    if isinstance(value, Message):
        made = json_format.MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        _make_readable(value, made)
        return made
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return value


def dumps(value: object, *, indent: int | None = None) -> str:
    """Return a value as one JSON document; without `indent` on one line."""
    return json.dumps(as_json(value), ensure_ascii=False, indent=indent)


def _make_readable(message: Message, made: dict[str, Any]) -> None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_BYTES:
            _show_bytes(message, field, value, made)
        elif not _has_ours(field):
            continue
        elif field.is_repeated:
            for each, made_each in zip(value, made[field.name], strict=True):
                _make_readable(each, made_each)
        else:
            _make_readable(value, made[field.name])


def _has_ours(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.full_name.startswith(_OURS) and not kind.GetOptions().map_entry


def _show_bytes(message: Message, field: FieldDescriptor, value: bytes, made: dict[str, Any]) -> None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        made[f"{field.name}_base64"] = made.pop(field.name)
        return
    made[field.name] = text
    media_type = str(getattr(message, "content_type", "")).partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            made[field.name] = json.loads(text)
        except (ValueError, RecursionError):
            return
