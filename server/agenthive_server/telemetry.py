"""Every log field and metric name, defined once."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Final, NamedTuple


class Sample(NamedTuple):
    """One value of a metric; a name that ends in `_total` is a counter."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


# Metrics ------------------------------------------------------------------------------------------------------------

RPC_CALLS: Final = "agenthive_rpc_calls_total"
RPC_SECONDS: Final = "agenthive_rpc_seconds_total"
RPC_IN_FLIGHT: Final = "agenthive_rpc_in_flight"
RPC_REFUSED: Final = "agenthive_rpc_refused_total"
SESSIONS_OPEN: Final = "agenthive_sessions_open"
TLS_END: Final = "agenthive_tls_certificate_end_time_seconds"
TLS_RENEWALS: Final = "agenthive_tls_renewals_total"

# Labels and log fields ----------------------------------------------------------------------------------------------

METHOD: Final = "method"
CODE: Final = "code"
REASON: Final = "reason"
LOAD: Final = "load"
CALL_ID: Final = "call_id"
PEER: Final = "peer"
PRINCIPAL: Final = "principal"
NAMESPACE: Final = "namespace"
INTERCEPTOR: Final = "interceptor"
SESSION_ID: Final = "session_id"

call_id: ContextVar[str] = ContextVar("agenthive_call_id", default="")
"""The id of the call that is being served, for every log line written meanwhile."""


class CallIdFilter(logging.Filter):
    """Puts the id of the call being served on each record, as the field `call_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with its call id."""
        if not hasattr(record, CALL_ID):
            record.call_id = call_id.get()
        return True
