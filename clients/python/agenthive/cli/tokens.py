"""`hive tokens`: let people, programs and workers in, and no longer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from agenthive.cli.arguments import Labels, Limit, RequestId
from agenthive.cli.call import run
from agenthive.cli.completion import enum_completion
from agenthive.cli.failures import ExitCode, Failure
from agenthive.cli.options import HiveCommand, settings_of
from agenthive.cli.options import group as new_group
from agenthive.cli.private_file import PrivateFile
from agenthive.cli.service_calls import listed, security, set_span
from agenthive.cli.values import duration, enum_value, pairs

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("Let people, programs and workers in (plugin security).")

Roles: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--role", metavar="viewer|agent|operator|admin", help="What it may do; repeat for more.",
        autocompletion=enum_completion("security_service", "Role"),
    ),
]  # fmt: skip
Everywhere: TypeAlias = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="In every namespace, not only in that of --namespace.")
]
Description: TypeAlias = Annotated[str, typer.Option("--description", metavar="TEXT", help="For people.")]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write the secret there, readable by you only, and do not print it."),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@group.command("issue", cls=HiveCommand)
def issue(
    context: typer.Context,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="Whose it is.", show_default=False)],
    role: Roles = None,
    everywhere: Everywhere = False,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="DURATION", parser=duration, help="How long it lives, at most 366d (90d)."),
    ] = None,
    description: Description = "",
    out: Out = None,
    force: Force = False,
    request_id: RequestId = None,
) -> None:
    """Make a token for calls and print its secret, this once.

    Its roles hold in the namespace of --namespace, or with -A in every one; the role bindings of the principal
    count besides (`hive roles`). What is printed to stdout is the secret alone; with --out it goes to a file that
    `hive --token-file` reads.

    \b
    Examples:
      hive tokens issue alice --role operator --namespace blue --ttl 30d --out alice.token
      hive tokens issue root --role admin --all-namespaces
      AGENTHIVE_TOKEN=$(hive tokens issue ci --role operator --ttl 1h) make deploy
    """
    from agenthive.v1 import security_service_pb2 as pb

    request = pb.IssueTokenRequest(
        principal=principal,
        description=description,
        roles=[enum_value(pb.Role.DESCRIPTOR, each) for each in role or ()],
        namespaces=[] if everywhere else [settings_of(context).namespace],
    )
    if ttl is not None:
        set_span(request.ttl, ttl)
    _make(context, "IssueToken", request, request_id, out, force=force)


@group.command("join", cls=HiveCommand)
def join(
    context: typer.Context,
    agent: Annotated[str, typer.Option("--agent", metavar="ID", help="Lets in this agent.")] = "",
    prefix: Annotated[str, typer.Option("--prefix", metavar="TEXT", help="Lets in agents whose ids begin so.")] = "",
    runner: Annotated[bool, typer.Option("--runner", help="Lets in a runner.")] = False,
    label: Labels = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="DURATION", parser=duration, help="How long it can be used, at most 1d (15m)."),
    ] = None,
    description: Description = "",
    out: Out = None,
    force: Force = False,
    request_id: RequestId = None,
) -> None:
    """Make a join token and print its secret, this once.

    One worker can join with it, once. It is for agents of the namespace of --namespace. Labels are those the worker
    has to bring along.

    \b
    Examples:
      hive tokens join --agent reviewer-1 --out reviewer-1.join
      hive tokens join --prefix build- --ttl 1h
      hive tokens join --runner --label zone=eu
    """
    from agenthive.v1 import security_service_pb2 as pb

    if bool(agent) + bool(prefix) + runner != 1:
        raise typer.BadParameter("say one of --agent, --prefix and --runner")
    request = pb.IssueJoinTokenRequest(description=description)
    request.scope.labels.update(pairs(label))
    if agent:
        request.scope.agent_id = agent
    elif prefix:
        request.scope.agent_id_prefix = prefix
    else:
        request.scope.runner = True
    if ttl is not None:
        set_span(request.ttl, ttl)
    _make(context, "IssueJoinToken", request, request_id, out, force=force)


@group.command("list", cls=HiveCommand)
def list_tokens(
    context: typer.Context,
    principal: Annotated[str, typer.Option("--principal", metavar="NAME", help="Only tokens of this principal.")] = "",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="bearer|join|credential",
            help="Only this kind; repeat for more.",
            autocompletion=enum_completion("security_service", "TokenKind"),
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="active|used|expired|revoked",
            help="Only in this state; repeat for more.",
            autocompletion=enum_completion("security_service", "TokenState"),
        ),
    ] = None,
    limit: Limit = 50,
) -> None:
    """List tokens, newest first; never their secrets.

    \b
    Examples:
      hive tokens list --state active
      hive tokens list --principal alice -o json | jq -r '.[].token_id'
    """
    from agenthive.v1 import security_service_pb2 as pb

    request = pb.ListTokensRequest(
        principal=principal,
        kinds=[enum_value(pb.TokenKind.DESCRIPTOR, each) for each in kind or ()],
        states=[enum_value(pb.TokenState.DESCRIPTOR, each) for each in state or ()],
    )

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views

        found = await listed(client, terminal, security(client).ListTokens, request, "tokens", limit)
        terminal.show(found, lambda: security_views.tokens(found, narrow=terminal.narrow))

    run(context, body)


@group.command("revoke", cls=HiveCommand)
def revoke(
    context: typer.Context,
    token_id: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Id of the token, not its secret.", show_default=False)
    ],
    request_id: RequestId = None,
) -> None:
    """Revoke a token, a join token or a credential.

    The next call with it is refused.

    \b
    Example:
      hive tokens revoke tok-4f0c
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views
        from agenthive.connection import new_request_id
        from agenthive.v1 import security_service_pb2 as pb

        request = pb.RevokeTokenRequest(request_id=new_request_id(request_id), token_id=token_id)
        token = (await client._call(security(client).RevokeToken, request)).token
        terminal.show(token, lambda: security_views.token(token))

    run(context, body)


def _make(
    context: typer.Context, method: str, request: Any, request_id: str | None, out: Path | None, *, force: bool
) -> None:
    """Make a token. Its secret goes to the file or to stdout; what is known of it besides, to the other stream."""

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views
        from agenthive.connection import new_request_id

        request.request_id = new_request_id(request_id)
        with nullcontext() if file is None else file:
            made = await client._call(getattr(security(client), method), request)
            if not made.secret:
                raise _gone(made.token.token_id)
            if file is not None:
                _keep(file, made)
        if file is not None:
            terminal.show(made.token, lambda: security_views.token(made.token))
            terminal.note(f"its secret is in {out}")
        elif terminal.json:
            terminal.document(made)
        else:
            terminal.err.print(security_views.token(made.token))
            terminal.raw(f"{made.secret}\n".encode())

    # Nothing is issued that could not be kept.
    file = None if out is None else PrivateFile(out, force=force)
    run(context, body)


def _keep(file: PrivateFile, made: Any) -> None:
    try:
        file.write(f"{made.secret}\n".encode())
        file.keep()
    except OSError as error:
        raise Failure(
            f"the secret could not be written ({error}): `hive tokens revoke {made.token.token_id}`, and make another",
            ExitCode.OTHER,
            "SECRET_LOST",
        ) from None


def _gone(token_id: str) -> Failure:
    return Failure(
        f"token {token_id} was made before with this request id, and its secret was in that answer only: "
        f"`hive tokens revoke {token_id}`, and make another",
        ExitCode.REFUSED,
        "SECRET_GONE",
    )
