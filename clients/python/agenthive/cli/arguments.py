"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from agenthive.cli.values import duration

AgentId: TypeAlias = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.", show_default=False)]
TaskId: TypeAlias = Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.", show_default=False)]
Labels: TypeAlias = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="A label; repeat for more.")
]
Capabilities: TypeAlias = Annotated[
    list[str] | None, typer.Option("--capability", "-c", metavar="NAME", help="A capability; repeat for more.")
]
Role: TypeAlias = Annotated[str, typer.Option("--role", metavar="ROLE", help="The role.", show_default=False)]
Reason: TypeAlias = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, for people; it is in the event.", show_default=False)
]
Limit: TypeAlias = Annotated[
    int, typer.Option("--limit", metavar="N", min=0, help="Show at most this many; 0 for all.")
]
Ttl: TypeAlias = Annotated[
    float | None,
    typer.Option("--ttl", metavar="DURATION", parser=duration, help="Drop it when not delivered by then (24h)."),
]
Revision: TypeAlias = Annotated[
    int, typer.Option("--revision", metavar="N", help="Change only this revision.", show_default=False)
]
RequestId: TypeAlias = Annotated[
    str | None, typer.Option("--request-id", metavar="ID", help="Repeating the command with the same id is harmless.")
]
