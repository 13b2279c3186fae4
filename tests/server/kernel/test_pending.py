"""An outcome that several wait for, some of them in vain."""

from __future__ import annotations

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.pending import Pending


async def test_all_who_wait_learn_the_outcome_but_those_who_left() -> None:
    pending = Pending()
    first, gone, last = pending.wait(), pending.wait(), pending.wait()
    gone.cancel()
    pending.settle(COMMITTED)
    assert [await first, await last] == [COMMITTED, COMMITTED]
    assert await pending is COMMITTED


async def test_a_failure_reaches_all_who_wait_and_who_asks_later() -> None:
    pending, error = Pending(), StoreUnavailable("no")
    first, gone, last = pending.wait(), pending.wait(), pending.wait()
    gone.cancel()
    pending.fail(error)
    for waiting in (first, last, pending):
        with pytest.raises(StoreUnavailable) as caught:
            await waiting
        assert caught.value is error
