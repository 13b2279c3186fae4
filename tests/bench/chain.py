"""What the built-in chain costs a call: the tuples of bound methods, run as the adapter runs them."""

from __future__ import annotations

import json
import sys
import time

from agenthive_server.kernel.clock import SystemClock
from agenthive_server.plugin.api import OK, Call
from agenthive_server.rpc.builtin import BuiltIn
from agenthive_server.rpc.chain import build_chain
from agenthive_server.rpc.disk import DiskGuard
from agenthive_server.rpc.policy import POLICIES

CALLS = 50_000
METHOD = "/agenthive.v1.OrchestratorService/DelegateTask"


class _Nowhere:
    def peer(self) -> str:
        return ""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


async def measure() -> float:
    """Return the seconds of CPU the chain takes of one call."""
    built_in = BuiltIn(clock=SystemClock(), new_id=lambda: "0" * 32)
    chain = build_chain((*built_in.interceptors, DiskGuard(lambda: 2**40, 2**20)))

    def once() -> None:
        call = Call(method=METHOD, policy=POLICIES[METHOD], transport=_Nowhere(), metadata=(), namespace="default")
        for before in chain.befores:
            before(call)
        for after in chain.afters[len(chain.befores)]:
            after(call, OK)

    def bare() -> None:
        Call(method=METHOD, policy=POLICIES[METHOD], transport=_Nowhere(), metadata=(), namespace="default")

    return _time(once) - _time(bare)


def _time(work: object) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(CALLS):
            work()  # type: ignore[operator]  # a function without arguments
        best = min(best, time.thread_time() - began)
    return best / CALLS


def main() -> None:
    """Measure and print."""
    import asyncio

    sys.stdout.write(json.dumps({"seconds": asyncio.run(measure())}) + "\n")


if __name__ == "__main__":
    main()
