"""Request ids from the event a handler was called for."""

from __future__ import annotations

import asyncio

import pytest
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import TaskSpec, Timeouts
from agenthive_server.plugin.occasion import Occasion, digest_of, present


def test_the_same_wish_has_the_same_digest_and_another_has_not() -> None:
    def wish(**spec: object) -> str:
        made = TaskSpec(type="t", input=Payload(data=b"\xff"), timeouts=Timeouts(progress=1.0), **spec)  # type: ignore[arg-type]
        return digest_of("delegate", "default", [NewTask(spec=made)], None, True)

    assert wish(labels={"a": "b"}) == wish(labels={"a": "b"})
    assert len({wish(), wish(title="x"), wish(labels={"a": "b"}), digest_of(AgentSpec()), digest_of()}) == 5


def test_what_is_no_record_has_none() -> None:
    with pytest.raises(TypeError):
        digest_of(object())


async def test_tasks_made_by_a_handler_act_on_its_occasion() -> None:
    async def ask() -> str:
        occasion = present()
        assert occasion is not None
        return occasion.request_id("d")

    with Occasion(3):
        ids = list(await asyncio.gather(ask(), ask()))
        with Occasion(4):
            ids.append(await ask())
        ids.append(await ask())
    assert ids == ["3-d-1", "3-d-2", "4-d-1", "3-d-3"]
    assert present() is None
