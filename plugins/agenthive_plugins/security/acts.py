"""What is recorded of a call: whether at all, as what kind of act, and what it was about, without any secret."""

from __future__ import annotations

import re
from typing import Any, Final

from agenthive_server.plugin.api import Audience, Call, Policy
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from .records import MOST_RESOURCES, Act, Category, Ending
from .roles import NAMESPACED, Role
from .tokens import redacted

CONNECT: Final = "/agenthive.v1.WorkerService/Connect"
UPLOAD: Final = "/agenthive.v1.BlobService/UploadBlob"
_PLUGINS: Final = "/agenthive.v1.PluginService/"
_SECURITY: Final = "/agenthive.v1.SecurityService/"
_ACCOUNTS: Final = frozenset(
    {"IssueToken", "RevokeToken", "IssueJoinToken", "SetRoleBinding", "DeleteRoleBinding", "ResolveThreat"}
)
MADE: Final = "security.made"
"""Name, among the notes of a call, of what it made: pairs of field and id, for its record."""

DENIALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

_PLAIN: Final = re.compile(r"[\w.:/@*+-]{1,200}")
_NAMED: Final = frozenset({"principal", "name", "role"})
_INSIDE: Final = frozenset({"binding", "scope", "rule", "target", "policy"})


def kind_of_call(policy: Policy) -> str:
    """Return whether a call reads, changes, or is for administrators."""
    if policy.audience is Audience.ADMIN:
        return "admin"
    return "read" if policy.idempotent else "change"


def is_recorded(method: str, policy: Policy, *, reads: bool) -> bool:
    """Whether a call that was allowed is recorded. What anybody may call never is: probes would fill the trail."""
    if policy.audience is Audience.ANYONE or method == CONNECT:
        return False
    return reads or not policy.idempotent or policy.audience is Audience.ADMIN or method == UPLOAD


def category_of(method: str, policy: Policy, request: Any) -> Category:
    """Return what kind of act a call is that was allowed."""
    service, _, name = method[1:].partition("/")
    if method == CONNECT:
        return Category.AUTHENTICATION
    if policy.idempotent and method != UPLOAD:
        return Category.DATA_ACCESS
    if method.startswith(_SECURITY) and name in _ACCOUNTS:
        return Category.PRIVILEGE_ESCALATION if gives_admin(request) else Category.USER_MANAGEMENT
    if method.startswith(_PLUGINS):
        return Category.CONFIGURATION_CHANGE
    if service in NAMESPACED:
        return Category.DATA_MODIFICATION
    if name.startswith(("Set", "Create", "Update", "Delete", "Configure")):
        return Category.CONFIGURATION_CHANGE
    return Category.SYSTEM_ADMINISTRATION if policy.audience is Audience.ADMIN else Category.DATA_MODIFICATION


def category_of_refusal(code: str) -> Category:
    """Return what kind of act a call is that was not allowed."""
    return Category.AUTHENTICATION if code == "UNAUTHENTICATED" else Category.AUTHORIZATION


def gives_admin(request: Any) -> bool:
    """Whether a request gives somebody the role of an administrator."""
    binding = getattr(request, "binding", None)
    roles = getattr(binding if binding is not None else request, "roles", ())
    return Role.ADMIN in roles


def act_of(
    call: Call,
    now: int,
    *,
    category: Category,
    outcome: Ending,
    peer: str,
    code: str,
    reason: str = "",
    principal: str = "",
    token_id: str = "",
    resources: tuple[tuple[str, str], ...] | None = None,
    text: str = "",
) -> Act:
    """Return the act a call was."""
    return Act(
        time=now,
        category=category,
        outcome=outcome,
        principal=principal or call.principal,
        token_id=token_id,
        method=call.method,
        namespace=call.namespace,
        peer=peer,
        code=code,
        reason=reason,
        resources=resources_of(call.request) if resources is None else resources,
        call_id=call.call_id,
        text=text,
    )


class _Names:
    """Which fields of each kind of request name something; found once for each."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[tuple[str, str, bool], ...]] = {}

    def of(self, kind: Descriptor) -> tuple[tuple[str, str, bool], ...]:
        found = self._fields.get(kind.full_name)
        if found is None:
            found = self._fields[kind.full_name] = tuple(self._find(kind, ""))
        return found

    def _find(self, kind: Descriptor, outer: str) -> list[tuple[str, str, bool]]:
        found = []
        for field in kind.fields:
            repeated = bool(field.is_repeated)
            if field.type == FieldDescriptor.TYPE_STRING and _names_something(field.name):
                found.append((outer, field.name, repeated))
            elif not outer and not repeated and field.name in _INSIDE and field.message_type is not None:
                found += self._find(field.message_type, field.name)
        return found


def _names_something(name: str) -> bool:
    return name in _NAMED or (name.endswith(("_id", "_ids", "_id_prefix")) and name != "request_id")


_names: Final = _Names()


def resources_of(request: Any) -> tuple[tuple[str, str], ...]:
    """Return what a request names: its ids, at most 8 of them, never what could be a secret."""
    if request is None:
        return ()
    found: list[tuple[str, str]] = []
    for outer, name, repeated in _names.of(request.DESCRIPTOR):
        value = getattr(getattr(request, outer), name) if outer else getattr(request, name)
        found += [(name, shown(each)) for each in (value[:MOST_RESOURCES] if repeated else (value,)) if each]
    return tuple(found[:MOST_RESOURCES])


def shown(value: str) -> str:
    """Return an id as it may be recorded: what is no plain word, or looks like a credential, is not."""
    if _PLAIN.fullmatch(value) is None:
        return "[not an id]"
    return redacted(value)
