"""`hive messages`: talk to agents."""

from __future__ import annotations

from contextlib import aclosing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.arguments import AgentId, RequestId, Role, Ttl
from agenthive.cli.call import run
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group
from agenthive.cli.values import content, enum_value

if TYPE_CHECKING:
    from rich.text import Text

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.message_pb2 import Message, MessageUrgency

group = new_group("Send messages to agents and read theirs.")


class Urgency(StrEnum):
    """When an agent should look at a message."""

    NOW = "now"
    NEXT_BOUNDARY = "next-boundary"
    QUEUE = "queue"


Content: TypeAlias = Annotated[
    str, typer.Argument(metavar="CONTENT", help="Text or JSON, @FILE, or - for stdin.", show_default=False)
]
UrgencyOption: TypeAlias = Annotated[
    Urgency, typer.Option("--urgency", metavar="now|next-boundary|queue", help="When to look at it.")
]
Sender: TypeAlias = Annotated[
    str, typer.Option("--from", metavar="AGENT", help="The agent that sends it.", show_default=False)
]


@group.command("send", cls=HiveCommand)
def send(
    context: typer.Context,
    text: Content,
    agent: Annotated[str, typer.Option("--agent", metavar="AGENT", help="To this agent.")] = "",
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="To whichever agent holds this task.")] = "",
    urgency: UrgencyOption = Urgency.QUEUE,
    sender: Sender = "",
    ttl: Ttl = None,
    request_id: RequestId = None,
) -> None:
    """Send a message to one agent, or steer a task.

    \b
    Examples:
      hive messages send --task 4f0c "look at the tests first" --urgency now
      hive messages send --agent reviewer-1 @briefing.md
    """
    if bool(agent) == bool(task):
        raise typer.BadParameter("say either --agent or --task")

    async def body(client: Client, terminal: Terminal) -> None:
        message = await client.send_message(
            content(text), agent_id=agent, task_id=task, sender_agent_id=sender, urgency=_urgency(urgency), ttl=ttl,
            request_id=request_id,
        )  # fmt: skip
        terminal.show(message, lambda: _line(message))

    run(context, body)


@group.command("broadcast", cls=HiveCommand)
def broadcast(
    context: typer.Context,
    text: Content,
    role: Role = "",
    urgency: UrgencyOption = Urgency.QUEUE,
    sender: Sender = "",
    ttl: Ttl = None,
    request_id: RequestId = None,
) -> None:
    """Send a message to every agent of a role, or to all.

    \b
    Example:
      hive messages broadcast "freeze at noon" --role builder
    """

    async def body(client: Client, terminal: Terminal) -> None:
        broadcast_id = await client.broadcast(
            content(text), role=role, sender_agent_id=sender, urgency=_urgency(urgency), ttl=ttl, request_id=request_id
        )  # fmt: skip
        if terminal.json:
            terminal.document({"broadcast_id": broadcast_id})
        else:
            terminal.raw(f"{broadcast_id}\n".encode())

    run(context, body)


@group.command("read", cls=HiveCommand)
def read(
    context: typer.Context,
    agent_id: AgentId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    ack: Annotated[bool, typer.Option("--ack", help="Mark each as read once it is shown.")] = False,
) -> None:
    """Show the messages of an agent that are not read yet.

    Oldest first; being shown marks them delivered.

    \b
    Examples:
      hive messages read reviewer-1
      hive messages read reviewer-1 --follow --ack -o json
    """

    async def body(client: Client, terminal: Terminal) -> None:
        count = 0
        async with aclosing(client.messages(agent_id, follow=follow)) as received:  # type: ignore[type-var] # it is a generator
            async for message in received:
                count += 1
                if terminal.json:
                    terminal.line(message)
                else:
                    terminal.out.print(_line(message), soft_wrap=True)
                if ack:
                    await client.acknowledge(agent_id, [message.message_id])
        if not count:
            terminal.note(f"no messages for {agent_id}")

    run(context, body)


@group.command("ack", cls=HiveCommand)
def ack(
    context: typer.Context,
    agent_id: AgentId,
    message_ids: Annotated[list[str], typer.Argument(metavar="MESSAGE...", hidden=True)],
    request_id: RequestId = None,
) -> None:
    """Mark messages of an agent as read.

    \b
    Example:
      hive messages ack reviewer-1 m-17 m-18
    """

    async def body(client: Client, terminal: Terminal) -> None:
        await client.acknowledge(agent_id, message_ids, request_id=request_id)
        if terminal.json:
            terminal.document({"agent_id": agent_id, "message_ids": message_ids})
        else:
            terminal.note(f"{len(message_ids)} read")

    run(context, body)


def _urgency(urgency: Urgency) -> MessageUrgency.ValueType:
    from agenthive.v1 import message_pb2

    value: MessageUrgency.ValueType = enum_value(message_pb2.MessageUrgency.DESCRIPTOR, urgency)
    return value


def _line(message: Message) -> Text:
    from rich.text import Text

    from agenthive.cli import tables
    from agenthive.cli.text import clock_time, payload_text
    from agenthive.cli.values import short_name
    from agenthive.v1 import message_pb2

    line = Text(f"{clock_time(message.create_time)} ", style="dim")
    line.append(message.message_id, style="not dim")
    line.append(" ").append(tables.state(short_name(message_pb2.MessageState.DESCRIPTOR, message.state)))
    urgency = short_name(message_pb2.MessageUrgency.DESCRIPTOR, message.urgency)
    if urgency not in ("QUEUE", "UNSPECIFIED"):
        line.append(f" {urgency}", style="not dim bold yellow")
    whole = f"{message.sender_agent_id or 'a caller'} to {message.agent_id or f'task {message.task_id}'}"
    line.append(f"  {tables.plain(whole)}: ", style="not dim")
    return line.append(payload_text(message.payload), style="not dim")
