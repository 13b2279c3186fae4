"""Settings of the plugin, `[plugins.security]`, and what the other modules take of them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from agenthive_server.plugin.api import Config, Rate
from msgspec import Meta

from .limits import Limits
from .roles import Role
from .threats import RULES, Rule, ThreatKind

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=366 * 86_400)]
Span = Annotated[float, Meta(gt=0, le=86_400)]
BlockSpan = Annotated[float, Meta(ge=0, le=86_400)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
NameKind = Literal["uri", "dns", "common_name"]
RoleName = Literal["viewer", "agent", "operator", "admin"]

ROLES: dict[str, Role] = {role.name.lower(): role for role in Role}


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table within the settings."""


class TokenSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.tokens]`: how long tokens live, and how many there may be."""

    default_ttl_days: Annotated[float, Meta(gt=0, le=366)] = 90.0
    join_ttl_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 900.0
    # Tokens, join tokens and credentials that are kept at once.
    maximum: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    # Days after which one that is over is forgotten; until then its use is told from that of a token never issued.
    keep_ended_days: Annotated[float, Meta(ge=0, le=366)] = 30.0


class LimitSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.limits]`: calls a minute, and as many at once; 0 is no limit."""

    per_principal: Count = 100
    per_method: Count = 50
    failed_logins: Count = 10
    # What a call that only reads counts as: with 0.05 twenty of them are one.
    read_cost: Annotated[float, Meta(ge=0, le=1)] = 0.05
    # By kind of call, below the limit of the principal; there every call is one.
    read: Count = 0
    change: Count = 0
    admin: Count = 0
    # By name of a principal, in place of the first two: for programs that are meant to call often.
    principals: dict[str, Count] = {}

    def limits(self) -> Limits:
        """Return them as rates."""
        classes = {"read": self.read, "change": self.change, "admin": self.admin}
        return Limits(
            per_principal=Rate(self.per_principal),
            per_method=Rate(self.per_method),
            failed_logins=Rate(self.failed_logins),
            read_cost=self.read_cost,
            by_class=tuple((name, Rate(count)) for name, count in classes.items() if count),
            by_principal=tuple((name, Rate(count)) for name, count in self.principals.items()),
        )


class JwtSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.jwt]`: the issuer whose tokens are accepted. Without `issuer` none are."""

    issuer: str = ""
    audience: str = ""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    # Where the issuer's keys are: a file, or a URL whose host is among `jwks_hosts`.
    jwks_file: str = ""
    jwks_url: str = ""
    jwks_hosts: tuple[str, ...] = ()
    refresh_seconds: Annotated[float, Meta(ge=30, le=86_400)] = 600.0
    leeway_seconds: Annotated[float, Meta(ge=0, le=300)] = 30.0
    # Longest life of a token that is accepted; 0: any.
    longest_life_seconds: Seconds = 86_400.0
    # A claim with names (`groups`, `realm_access.roles`), and the role each of them is worth here.
    roles_claim: str = ""
    roles: dict[str, RoleName] = {}
    # Accept each token once, by its `jti`.
    single_use: bool = False

    def __post_init__(self) -> None:
        if not self.issuer:
            return
        if not self.audience:
            raise ValueError("jwt: an issuer's tokens are accepted for one `audience` only")
        if bool(self.jwks_file) == bool(self.jwks_url):
            raise ValueError("jwt: the keys of the issuer are in `jwks_file` or at `jwks_url`, one of them")
        if not self.algorithms:
            raise ValueError("jwt: no `algorithms`, so no token could be accepted")
        if self.jwks_url:
            # It comes with an HTTP client, which only those need who fetch keys.
            from .jwks import check_url

            check_url(self.jwks_url, self.jwks_hosts)


class CertificateSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.certificates]`: which name in a client certificate is the principal, in this order."""

    names: tuple[NameKind, ...] = ("uri", "dns", "common_name")


class AuditSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.audit]`: what is recorded, when it is durable, how long it is kept."""

    # Record reading, too. Calls of administrators, changes and refusals always are.
    reads: bool = False
    # Calls that are answered only when their record is durable: `admin`, those for administrators; `changes`, all that
    # change something; `none`.
    durable: Literal["none", "admin", "changes"] = "admin"
    # Others are recorded within so long; `kill -9` loses them.
    flush_seconds: Annotated[float, Meta(ge=0.01, le=60)] = 0.1
    # The same refusal again within so long is counted, not recorded again.
    fold_seconds: Annotated[float, Meta(ge=0, le=3_600)] = 10.0
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 2_555
    # Bytes of records, compressed; beyond, the oldest are removed before their time, and health says so.
    maximum_bytes: Annotated[int, Meta(ge=1_000_000)] = 4 * 2**30


class RuleSettings(Table, frozen=True, kw_only=True):
    """When a signal is a threat, and for how long it blocks whoever is behind it; a count of 0 switches it off."""

    count: Count = 0
    seconds: Span = 60.0
    block_seconds: BlockSpan = 0.0


class FailedLoginsSettings(RuleSettings, frozen=True, kw_only=True):
    """Credentials from one address that were not accepted."""

    count: Count = 20
    seconds: Span = 60.0
    block_seconds: BlockSpan = 900.0


class PrivilegeProbingSettings(RuleSettings, frozen=True, kw_only=True):
    """Different RPCs a principal may not call."""

    count: Count = 5
    seconds: Span = 300.0
    block_seconds: BlockSpan = 900.0


class ExcessiveRateSettings(RuleSettings, frozen=True, kw_only=True):
    """Calls of a principal beyond its rate."""

    count: Count = 200
    seconds: Span = 10.0
    block_seconds: BlockSpan = 300.0


class SharedTokenSettings(RuleSettings, frozen=True, kw_only=True):
    """Addresses one token is used from."""

    count: Count = 10
    seconds: Span = 600.0
    block_seconds: BlockSpan = 0.0


class ReplaySettings(RuleSettings, frozen=True, kw_only=True):
    """Tokens presented again that count once."""

    count: Count = 3
    seconds: Span = 300.0
    block_seconds: BlockSpan = 900.0


class RevokedTokenSettings(RuleSettings, frozen=True, kw_only=True):
    """Uses of tokens that were revoked, from one address."""

    count: Count = 5
    seconds: Span = 300.0
    block_seconds: BlockSpan = 900.0


class ThreatSettings(Table, frozen=True, kw_only=True):
    """`[plugins.security.threats]`: what is a threat. A block doubles when the same comes back."""

    longest_block_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 3_600.0
    failed_logins: FailedLoginsSettings = FailedLoginsSettings()
    privilege_probing: PrivilegeProbingSettings = PrivilegeProbingSettings()
    excessive_rate: ExcessiveRateSettings = ExcessiveRateSettings()
    shared_token: SharedTokenSettings = SharedTokenSettings()
    replay: ReplaySettings = ReplaySettings()
    revoked_token: RevokedTokenSettings = RevokedTokenSettings()

    def rules(self) -> dict[ThreatKind, Rule]:
        """Return them as the detector takes them."""
        found = {}
        for kind, rule in RULES.items():
            setting: RuleSettings = getattr(self, kind.lower())
            found[kind] = Rule(setting.count, setting.seconds, rule.severity, setting.block_seconds, rule.distinct)
        return found


class SecurityConfig(Config, frozen=True, kw_only=True):
    """All settings of the plugin."""

    tokens: TokenSettings = TokenSettings()
    limits: LimitSettings = LimitSettings()
    jwt: JwtSettings = JwtSettings()
    certificates: CertificateSettings = CertificateSettings()
    audit: AuditSettings = AuditSettings()
    threats: ThreatSettings = ThreatSettings()
