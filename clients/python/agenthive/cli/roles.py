"""`hive roles`: what principals may do, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.arguments import RequestId
from agenthive.cli.call import run
from agenthive.cli.completion import enum_completion
from agenthive.cli.options import HiveCommand, settings_of
from agenthive.cli.options import group as new_group
from agenthive.cli.service_calls import listed, security
from agenthive.cli.tokens import Everywhere
from agenthive.cli.values import enum_value

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("Say what principals may do, and where (plugin security).")

Principal: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="PRINCIPAL", show_default=False,
        help="That of a token, jwt:SUBJECT, cert:NAME, or agent:NAMESPACE/ID.",
    ),
]  # fmt: skip


@group.command("list", cls=HiveCommand)
def list_roles(
    context: typer.Context,
    principal: Annotated[str, typer.Option("--principal", metavar="NAME", help="Only those of this principal.")] = "",
) -> None:
    """List role bindings of every namespace, by principal.

    What a token allows by itself is in `hive tokens list`.

    \b
    Example:
      hive roles list --principal cert:build.example.org
    """

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views
        from agenthive.v1 import security_service_pb2 as pb

        request = pb.ListRoleBindingsRequest(principal=principal)
        found = await listed(client, terminal, security(client).ListRoleBindings, request, "bindings")
        terminal.show(found, lambda: security_views.bindings(found))

    run(context, body)


@group.command("set", cls=HiveCommand)
def set_roles(
    context: typer.Context,
    principal: Principal,
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            metavar="viewer|agent|operator|admin",
            help="What it may do there; repeat for more.",
            autocompletion=enum_completion("security_service", "Role"),
        ),
    ],
    everywhere: Everywhere = False,
    request_id: RequestId = None,
) -> None:
    """Give a principal roles in one namespace.

    They hold in that of --namespace, in place of those it had there.

    \b
    Examples:
      hive roles set alice --role operator --namespace blue
      hive roles set jwt:alice@example.org --role admin --all-namespaces
    """
    from agenthive.v1 import security_service_pb2 as pb

    binding = pb.RoleBinding(
        principal=principal,
        namespace=_namespace(context, everywhere=everywhere),
        roles=[enum_value(pb.Role.DESCRIPTOR, each) for each in role],
    )

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import security_views
        from agenthive.connection import new_request_id

        request = pb.SetRoleBindingRequest(request_id=new_request_id(request_id), binding=binding)
        made = (await client._call(security(client).SetRoleBinding, request)).binding
        terminal.show(made, lambda: security_views.bindings([made]))

    run(context, body)


@group.command("delete", cls=HiveCommand)
def delete(
    context: typer.Context, principal: Principal, everywhere: Everywhere = False, request_id: RequestId = None
) -> None:
    """Take a principal's roles in one namespace.

    It is that of --namespace. With -A it is the binding for every namespace that goes, and no other.

    \b
    Example:
      hive roles delete alice --namespace blue
    """
    namespace = _namespace(context, everywhere=everywhere)

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.connection import new_request_id
        from agenthive.v1 import security_service_pb2 as pb

        request = pb.DeleteRoleBindingRequest(
            request_id=new_request_id(request_id), principal=principal, namespace=namespace
        )
        await client._call(security(client).DeleteRoleBinding, request)
        if terminal.json:
            terminal.document({"principal": principal, "namespace": namespace})
        else:
            where = "every namespace" if namespace == "*" else namespace
            terminal.note(f"{principal} has no roles of its own for {where} any more")

    run(context, body)


def _namespace(context: typer.Context, *, everywhere: bool) -> str:
    return "*" if everywhere else settings_of(context).namespace
