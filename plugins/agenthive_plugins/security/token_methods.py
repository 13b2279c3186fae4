"""SecurityService: tokens, join tokens, role bindings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.plugin.api import Call

from . import checks
from .acts import MADE
from .bindings import Bindings
from .config import TokenSettings
from .convert import fill_binding, fill_token, names_of, scope_from
from .issuing import Issuing, Shown, Wish, not_found
from .requests import Request
from .tokens import TokenKind, TokenState, is_token_id

T = TypeVar("T")

DAY: Final = 86_400.0
_KINDS: Final = names_of(pb.TokenKind, "TOKEN_KIND_")
_STATES: Final = names_of(pb.TokenState, "TOKEN_STATE_")


class TokenMethods:
    """Tokens and role bindings."""

    def __init__(self, issuing: Issuing, bindings: Bindings, settings: TokenSettings, now: Callable[[], float]) -> None:
        self._issuing = issuing
        self._bindings = bindings
        self._settings = settings
        self._now = now

    async def IssueToken(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        """Make an opaque token."""
        default = self._settings.default_ttl_days * DAY
        wish = Wish(
            kind=TokenKind.BEARER,
            principal=checks.principal(request.principal, issued=True),
            ttl=checks.span(request, "ttl", default, 60.0, 366 * DAY),
            roles=checks.roles(request.roles),
            namespaces=checks.namespaces(request.namespaces),
            description=checks.text(request.description, "description"),
        )
        token, secret = await self._issuing.issue(wish, Request(call, request), call.principal)
        call.notes[MADE] = (("token_id", token.id),)
        response = pb.IssueTokenResponse(secret=secret)
        fill_token(response.token, Shown(token, 0.0), self._now())
        return response

    async def IssueJoinToken(self, request: pb.IssueJoinTokenRequest, call: Call) -> pb.IssueJoinTokenResponse:
        """Make a join token for the namespace of the call."""
        default = self._settings.join_ttl_seconds
        scope = scope_from(request.scope)
        wish = Wish(
            kind=TokenKind.JOIN,
            principal="",
            ttl=checks.span(request, "ttl", default, 1.0, DAY),
            namespaces=(call.namespace,),
            description=checks.text(request.description, "description"),
            scope=scope,
        )
        token, secret = await self._issuing.issue(wish, Request(call, request), call.principal)
        call.notes[MADE] = (("token_id", token.id),)
        response = pb.IssueJoinTokenResponse(secret=secret)
        fill_token(response.token, Shown(token, 0.0), self._now())
        return response

    async def RevokeToken(self, request: pb.RevokeTokenRequest, call: Call) -> pb.RevokeTokenResponse:
        """Revoke a token of any kind."""
        if not is_token_id(request.token_id):
            raise not_found("token", request.token_id[:128])
        shown = await self._issuing.revoke(request.token_id, Request(call, request))
        response = pb.RevokeTokenResponse()
        fill_token(response.token, shown, self._now())
        return response

    async def ListTokens(self, request: pb.ListTokensRequest, call: Call) -> pb.ListTokensResponse:
        """List tokens, newest first."""
        found = await self._issuing.list_tokens(
            checks.text(request.principal, "principal", 255),
            checks.enums(TokenKind, _KINDS, request.kinds, "kinds"),
            checks.enums(TokenState, _STATES, request.states, "states"),
        )
        page, token = page_of(
            call, request, found, lambda shown: [shown.token.create_time, shown.token.id], newest=True
        )
        response = pb.ListTokensResponse(next_page_token=token)
        for shown in page:
            fill_token(response.tokens.add(), shown, self._now())
        return response

    async def SetRoleBinding(self, request: pb.SetRoleBindingRequest, call: Call) -> pb.SetRoleBindingResponse:
        """Set the roles of a principal in a namespace."""
        asked = request.binding
        binding = await self._bindings.set(
            Request(call, request),
            checks.principal(asked.principal, "binding.principal"),
            checks.namespace(asked.namespace, "binding.namespace"),
            checks.roles(asked.roles, "binding.roles", required=True),
            self._now(),
        )
        response = pb.SetRoleBindingResponse()
        fill_binding(response.binding, binding)
        return response

    async def ListRoleBindings(self, request: pb.ListRoleBindingsRequest, call: Call) -> pb.ListRoleBindingsResponse:
        """List role bindings."""
        wanted = checks.text(request.principal, "principal", 255)
        found = [each for each in await self._bindings.list_bindings() if wanted in ("", each.principal)]
        page, token = page_of(call, request, found, lambda each: [each.principal, each.namespace])
        response = pb.ListRoleBindingsResponse(next_page_token=token)
        for binding in page:
            fill_binding(response.bindings.add(), binding)
        return response

    async def DeleteRoleBinding(self, request: pb.DeleteRoleBindingRequest, call: Call) -> pb.DeleteRoleBindingResponse:
        """Take the roles of a principal in a namespace."""
        principal = checks.principal(request.principal)
        await self._bindings.delete(Request(call, request), principal, checks.namespace(request.namespace), self._now())
        return pb.DeleteRoleBindingResponse()


def page_of(
    call: Call, request: Any, found: Sequence[T], key: Callable[[T], list[Any]], *, newest: bool = False
) -> tuple[list[T], str]:
    """Return a page of records that are in order of their keys, and the token of the next; empty on the last."""
    size, after = checks.page_size(request), checks.page_after(call, request)
    rest = list(found)
    if after is not None:
        try:
            rest = [each for each in rest if (key(each) < after if newest else key(each) > after)]
        except TypeError:
            raise checks.bad_page_token() from None
    page = rest[:size]
    return page, checks.page_token(call, request, key(page[-1])) if len(rest) > size else ""
