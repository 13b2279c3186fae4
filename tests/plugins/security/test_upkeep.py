"""Beside the calls: what others changed counts, what is over is forgotten, what is damaged gives nobody anything."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive.v1 import orchestrator_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security.bindings import Bindings
from agenthive_plugins.security.callers import Book
from agenthive_plugins.security.issuing import Issuing, Wish
from agenthive_plugins.security.roles import Role
from agenthive_plugins.security.tokens import TokenKind
from agenthive_server.plugin.api import StoreUnavailable
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.hive import Hive
from agenthive_server.testing.waiting import eventually

LOOK = "OrchestratorService/ListAgents"
KEY = b"k" * 32


@pytest.fixture
def book(state: PluginState) -> Book:
    return Book(state, Bindings(state), KEY)


@pytest.fixture
def issuing(state: PluginState, hive: Hive, book: Book) -> Issuing:
    return Issuing(state, book, KEY, hive.clock.now, maximum=100)


def wish(principal: str = "ann", ttl: float = 100.0) -> Wish:
    return Wish(kind=TokenKind.BEARER, principal=principal, ttl=ttl, roles=(Role.VIEWER,))


async def test_a_token_made_elsewhere_is_found_and_one_revoked_elsewhere_soon_refused(
    hive: Hive, state: PluginState, book: Book, issuing: Issuing
) -> None:
    elsewhere = Book(state, Bindings(state), KEY)
    token, secret = await Issuing(state, elsewhere, KEY, hive.clock.now, maximum=100).issue(wish())
    assert book.find(secret) is None
    found = await book.look_up(secret, hive.clock.now())
    assert found is not None
    assert book.find(secret) is found
    await Issuing(state, elsewhere, KEY, hive.clock.now, maximum=100).revoke(token.id)
    await book.load(hive.clock.now())
    again = book.find(secret)
    assert again is not None
    assert again.state.name == "REVOKED"


async def test_nothing_is_looked_up_for_what_cannot_be_a_token(
    state: PluginState, book: Book, issuing: Issuing
) -> None:
    _, secret = await issuing.issue(wish())
    other = Book(state, Bindings(state), b"j" * 32)
    assert await other.look_up(secret, 0.0) is None
    for text in ("", "x", secret[:-1], secret + "x", secret * 100, secret[:-1] + "é"):
        assert await book.look_up(text, 0.0) is None
        assert book.find(text) is None


async def test_what_is_over_is_forgotten_after_its_time(hive: Hive, state: PluginState, issuing: Issuing) -> None:
    kept, _ = await issuing.issue(wish("kept", ttl=1e6))
    expired, _ = await issuing.issue(wish("expired"))
    revoked, _ = await issuing.issue(wish("revoked"))
    await issuing.revoke(revoked.id)
    hive.clock.move(150.0)
    assert await issuing.clean(60.0) == 1
    hive.clock.move(100.0)
    assert await issuing.clean(60.0) == 1
    assert [shown.token.id for shown in await issuing.list_tokens()] == [kept.id]
    assert expired.id != kept.id


async def test_damaged_rows_give_nobody_anything_and_stop_nobody(open_secured: Any, tmp_path: Any) -> None:
    async with open_secured() as secured:
        damaged, good = await secured.issue("eve", pb.ROLE_VIEWER), await secured.issue("ann", pb.ROLE_VIEWER)
        binding = pb.RoleBinding(principal="bob", namespace="*", roles=[pb.ROLE_ADMIN])
        await secured.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))
        state = PluginState(secured.app.kernel.state, "security")
        for stored in (*await state.scan("token/"), *await state.scan("binding/")):
            if b'"eve"' in stored.value or b'"bob"' in stored.value:
                await state.put(stored.key, stored.value[:-3])
    async with open_secured(tmp_path) as secured:
        await secured.call(LOOK, token=good)
        assert (await secured.refused(LOOK, token=damaged)).metadata["why"] == "unknown"
        assert not (await secured.call("SecurityService/ListRoleBindings")).bindings
        tokens = (await secured.call("SecurityService/ListTokens")).tokens
        assert {token.principal for token in tokens} == {"admin", "ann"}


async def test_memories_of_calls_are_cleaned_up(open_secured: Any) -> None:
    async with open_secured() as secured:
        own = PluginState(secured.app.kernel.state, "security")
        await secured.issue("ann", request_id="1")
        assert await own.scan("request/")
        upkeep = secured.app.plugins._rack.standings["security"].instance.plugin.tasks[3].run.__self__
        await upkeep.once()
        assert await own.scan("request/")
        secured.clock.ahead += 86_401.0
        await upkeep.once()
        assert not await own.scan("request/")


async def test_the_oldest_records_are_removed_after_their_time_and_the_rest_holds(open_secured: Any) -> None:
    async with open_secured(audit__retention_days=1) as secured:
        for n in range(5):
            await secured.issue(f"p{n}")
        secured.clock.ahead += 2 * 86_400.0
        await secured.issue("late")
        upkeep = secured.app.plugins._rack.standings["security"].instance.plugin.tasks[3].run.__self__
        await upkeep.once()
        found = await secured.verify()
        assert found.intact
        assert found.chains[0].first_sequence > 5
        names = [each.id for record in await secured.trail(methods=["IssueToken"]) for each in record.resources]
        assert "late" in names
        assert "p0" not in names
        removed = await secured.trail(categories=[pb.AUDIT_CATEGORY_AUDIT_TRAIL], methods=["audit.removed"])
        assert len(removed) == 1


async def test_changes_of_another_replica_are_taken_over_within_a_second_or_so(secured: Any) -> None:
    token = await secured.issue("ann")
    assert (await secured.refused(LOOK, token=token)).code == "PERMISSION_DENIED"
    # As another replica would: in the state, past this one's memory.
    state = PluginState(secured.app.kernel.state, "security")
    elsewhere = Bindings(state)

    class Nobody:
        principal = "admin"

        def earlier(self, rows: object) -> None:
            return None

        def remember(self, *_: object) -> None:
            return None

    nobody: Any = Nobody()
    await elsewhere.set(nobody, "ann", "*", [Role.VIEWER], 1.0)

    async def allowed() -> bool:
        try:
            await secured.call(LOOK, token=token)
        except Exception:  # noqa: BLE001 - refused in whatever way
            return False
        return True

    await eventually(allowed, what="the binding counts here, too")


async def test_health_says_when_the_trail_cannot_be_written_and_nothing_is_done_unrecorded(secured: Any) -> None:
    instance = secured.app.plugins._rack.standings["security"].instance
    trail = instance.plugin.interceptors[0]._trail
    state = trail._state

    class Broken:
        async def change(self, _: object) -> None:
            raise StoreUnavailable("the disk is gone")

    trail._state = Broken()
    spawn = orchestrator_service_pb2.ShutdownAgentRequest(agent_id="x")
    await secured.refused("OrchestratorService/ShutdownAgent", spawn)

    async def told() -> bool:
        components = (await secured.call("OrchestratorService/HealthCheck")).components
        return any(each.name == "plugin/security" and "disk is gone" in each.reason for each in components)

    await eventually(told, what="health says so")
    while not trail.full:
        trail.note_refusal(trail._own("x"))
        trail.note(trail._own("x"))
    failed = await secured.refused("OrchestratorService/ShutdownAgent", spawn)
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    # Looking is answered on.
    await secured.call(LOOK)
    trail._state = state
    await eventually(lambda: not trail.full, what="the trail is written again")
    assert (await secured.verify()).intact
