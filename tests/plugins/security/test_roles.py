"""Each role allows what its audience is for, and nothing in namespaces it was not given for."""

from __future__ import annotations

import pytest
from agenthive_plugins.security.roles import EVERYWHERE, Access, Role, access, grants
from agenthive_server.plugin.api import Audience
from hypothesis import given
from hypothesis import strategies as st

NO, OWN, YES = Access.NO, Access.OWN, Access.YES

roles = st.frozensets(st.sampled_from(Role))
namespaces = st.frozensets(st.sampled_from(["a", "b", "c", EVERYWHERE]), min_size=1)


@pytest.mark.parametrize(
    ("audience", "viewer", "agent", "operator", "admin"),
    [
        (Audience.ANYONE, YES, YES, YES, YES),
        (Audience.VIEWER, YES, OWN, YES, YES),
        (Audience.AGENT, NO, OWN, YES, YES),
        (Audience.OPERATOR, NO, NO, YES, YES),
        (Audience.ADMIN, NO, NO, NO, YES),
    ],
)
def test_what_a_role_allows(audience: Audience, viewer: Access, agent: Access, operator: Access, admin: Access) -> None:
    assert [access([role], audience) for role in Role] == [viewer, agent, operator, admin]


@given(roles, roles, st.sampled_from(Audience))
def test_more_roles_never_allow_less(some: frozenset[Role], more: frozenset[Role], audience: Audience) -> None:
    assert access(some | more, audience) == max(access(some, audience), access(more, audience))


@given(st.sampled_from(Audience))
def test_without_a_role_only_what_is_for_anyone_is_allowed(audience: Audience) -> None:
    assert access([], audience) is (YES if audience is Audience.ANYONE else NO)


@given(roles, namespaces, roles, namespaces)
def test_grants_hold_where_they_were_given_and_nowhere_else(
    some: frozenset[Role], here: frozenset[str], others: frozenset[Role], there: frozenset[str]
) -> None:
    both = grants(some, here).joined(grants(others, there))
    for name in ("a", "b", "c", "d"):
        wanted: frozenset[Role] = frozenset()
        if name in here or EVERYWHERE in here:
            wanted |= some
        if name in there or EVERYWHERE in there:
            wanted |= others
        assert both.roles_in(name) == wanted
    everywhere = (some if EVERYWHERE in here else frozenset()) | (others if EVERYWHERE in there else frozenset())
    assert both.roles_in(EVERYWHERE) == everywhere


def test_no_namespace_means_every_one() -> None:
    assert grants([Role.ADMIN]).roles_in("anywhere") == {Role.ADMIN}
    assert grants([Role.ADMIN]).roles_in(EVERYWHERE) == {Role.ADMIN}
    assert grants([]).roles_in("a") == frozenset()
