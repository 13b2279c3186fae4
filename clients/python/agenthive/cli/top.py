"""`hive top`: the hive at a glance, live."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agenthive.cli.call import run, take
from agenthive.cli.options import settings_of
from agenthive.cli.text import now
from agenthive.cli.values import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from agenthive.cli.terminal import Terminal
    from agenthive.cli.top_board import Board
    from agenthive.client import Client

_MOST: Final = 500  # agents and tasks asked for each time
_FRAME_SECONDS: Final = 0.25


def top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="DURATION", parser=duration, help="Time between two looks.")
    ] = 2.0,
    replica: Annotated[bool, typer.Option("--replica", help="Of the servers, only the replica that answers.")] = False,
) -> None:
    """Show replicas, agents, queue, throughput and health, live.

    q or Ctrl-C ends it.

    \b
    Examples:
      hive top
      hive top --once
      hive top --once -o json | jq .last_minute
    """
    server = settings_of(context).server

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli.top_board import Board

        watch = _Watch(client, Board(), max(0.2, interval), alone=replica)
        if once:
            await watch.look(events=True)
            if terminal.json:
                terminal.document(watch.board.document(now()))
            else:
                terminal.table(_picture(watch.board, server, terminal, height=None))
        elif terminal.json or not terminal.out.is_terminal:
            await watch.lines(terminal, server)
        else:
            await _live(watch, terminal, server)

    run(context, body)


def _picture(board: Board, server: str, terminal: Terminal, *, height: int | None) -> RenderableType:
    from agenthive.cli.top_view import view

    return view(board, server, now(), width=terminal.out.width, height=height)


class _Watch:
    """Keeps a board up to date: lists and health by asking, throughput and progress from the event stream."""

    def __init__(self, client: Client, board: Board, interval: float, *, alone: bool) -> None:
        self.board = board
        self._alone = alone
        self._client = client
        self._interval = interval

    async def look(self, *, events: bool = False) -> None:
        """Ask once; with `events`, read the last minute of the log too. Raises a HiveError."""
        from agenthive.cli.top_board import HELD_STATES, WAITING_STATES

        client = self._client
        health, (agents, _), (held, _), (waiting, _), _ = await asyncio.gather(
            client.health(this_replica_only=self._alone),
            take(client.list_agents(page_size=_MOST), _MOST),
            take(client.list_tasks(states=HELD_STATES, page_size=_MOST), _MOST),
            take(client.list_tasks(states=WAITING_STATES, page_size=_MOST), _MOST),
            self._read(follow=False) if events else asyncio.sleep(0),
        )
        self.board.health = health
        self.board.take_lists(agents, held, waiting)

    async def _read(self, *, follow: bool) -> None:
        from agenthive.cli.top_board import WINDOW_SECONDS
        from agenthive.v1 import orchestrator_service_pb2 as orchestrator

        begin = datetime.fromtimestamp(now() - WINDOW_SECONDS, UTC)
        stream = self._client.events(
            start_time=begin,
            follow=follow,
            event_class=orchestrator.EVENT_CLASS_ALL,
            give_up_after=None if follow else self._client.timeout,
        )
        async with stream:
            async for event in stream:
                self.board.take_event(event, now())

    async def keep(self) -> None:
        """Look again and again; what the server does not answer is told on the board."""
        from agenthive.errors import HiveError

        while True:
            try:
                async with asyncio.timeout(5):
                    await self.look()
                self.board.trouble = ""
            except (HiveError, TimeoutError) as error:
                self.board.trouble = f"no answer: {getattr(error, 'message', '') or 'in time'}"
            await asyncio.sleep(self._interval)

    async def lines(self, terminal: Terminal, server: str) -> None:
        """Write the picture again and again, for a file or a script, until the server does not answer."""
        from agenthive.waiting import first_of

        async def write() -> None:
            while True:
                await self.look()
                if terminal.json:
                    terminal.line(self.board.document(now()))
                else:
                    terminal.table(_picture(self.board, server, terminal, height=None))
                await asyncio.sleep(self._interval)

        await first_of(self._read(follow=True), write())

    async def until_quit(self, quits: asyncio.Event) -> None:
        """Keep the board up to date until the event is set."""
        from agenthive.waiting import first_of

        await first_of(self._read(follow=True), self.keep(), _wait(quits))


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _live(watch: _Watch, terminal: Terminal, server: str) -> None:
    from rich.live import Live

    quits = asyncio.Event()
    await watch.look()
    with (
        _keys(quits),
        Live(console=terminal.out, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        keeping = asyncio.ensure_future(watch.until_quit(quits))
        try:
            while not keeping.done():
                live.update(_picture(watch.board, server, terminal, height=terminal.out.height), refresh=True)
                await asyncio.wait((keeping,), timeout=_FRAME_SECONDS)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
    if not keeping.cancelled() and (error := keeping.exception()) is not None:
        raise error


@contextmanager
def _keys(quits: asyncio.Event) -> Iterator[None]:
    """Set the event when q is pressed, where somebody can press it; the terminal is left as it was."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        if set(sys.stdin.read(1)) & set("qQ\x03"):
            quits.set()

    tty.setcbreak(number)
    loop.add_reader(number, pressed)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)
