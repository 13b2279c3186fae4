"""Roles: which audience each of them belongs to, and what a caller's grants come to in a namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from agenthive_server.plugin.api import Audience

EVERYWHERE: Final = "*"
"""The namespace of a grant that holds in all of them, and for what belongs to none: plugins, tokens, the trail."""

NAMESPACED: Final = frozenset(
    {
        "agenthive.v1.OrchestratorService",
        "agenthive.v1.WorkerService",
        "agenthive.v1.MessagingService",
        "agenthive.v1.BlobService",
    }
)
"""Services whose calls act in one namespace. All others act on the hive as a whole."""


class Role(IntEnum):
    """What a principal may do; the numbers are those of the protos."""

    VIEWER = 1
    AGENT = 2
    OPERATOR = 3
    ADMIN = 4


class Access(IntEnum):
    """Whether a call is allowed."""

    NO = 0
    OWN = 1
    """Only if what it is about belongs to the caller."""
    YES = 2


_ACCESS: Final[Mapping[tuple[Role, Audience], Access]] = {
    (Role.VIEWER, Audience.VIEWER): Access.YES,
    (Role.AGENT, Audience.VIEWER): Access.OWN,
    (Role.AGENT, Audience.AGENT): Access.OWN,
    (Role.OPERATOR, Audience.VIEWER): Access.YES,
    (Role.OPERATOR, Audience.AGENT): Access.YES,
    (Role.OPERATOR, Audience.OPERATOR): Access.YES,
    (Role.ADMIN, Audience.VIEWER): Access.YES,
    (Role.ADMIN, Audience.AGENT): Access.YES,
    (Role.ADMIN, Audience.OPERATOR): Access.YES,
    (Role.ADMIN, Audience.ADMIN): Access.YES,
}


def access(roles: Iterable[Role], audience: Audience) -> Access:
    """Return what roles allow of the RPCs of an audience. Those for anyone need none."""
    if audience is Audience.ANYONE:
        return Access.YES
    return max((_ACCESS.get((role, audience), Access.NO) for role in roles), default=Access.NO)


@dataclass(frozen=True, slots=True)
class Grants:
    """The roles of one caller: everywhere, and by namespace on top of that."""

    everywhere: frozenset[Role] = frozenset()
    by_namespace: Mapping[str, frozenset[Role]] = field(default_factory=dict)

    def roles_in(self, namespace: str) -> frozenset[Role]:
        """Return the roles in a namespace, or (`*`) in every one."""
        return self.everywhere | self.by_namespace.get(namespace, frozenset())

    def joined(self, other: Grants) -> Grants:
        """Return what both allow together."""
        namespaces = self.by_namespace.keys() | other.by_namespace.keys()
        none: frozenset[Role] = frozenset()
        return Grants(
            self.everywhere | other.everywhere,
            {name: self.by_namespace.get(name, none) | other.by_namespace.get(name, none) for name in namespaces},
        )


NOTHING: Final = Grants()


def grants(roles: Iterable[Role], namespaces: Iterable[str] = ()) -> Grants:
    """Return the grants of roles that hold in some namespaces; in every one where none is named, or `*` is."""
    given, where = frozenset(roles), frozenset(namespaces)
    if not given:
        return NOTHING
    if not where or EVERYWHERE in where:
        return Grants(given)
    return Grants(by_namespace=dict.fromkeys(where, given))
