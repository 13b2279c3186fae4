"""Takes the place of setpriv and prlimit where they are missing: confines itself, then becomes the command.

Run as a script, without the package: PARENT LIMITS COMMAND…, where PARENT is the process id the command must not
outlive and LIMITS a JSON object of soft and hard limits by name. About 10 ms, five times as long as the two programs.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
_SET_NO_NEW_PRIVILEGES = 38


def main(arguments: list[str]) -> None:
    """Become the command; does not return. Exits with 126 when that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if os.getppid() != int(arguments[0]):
        sys.exit(126)
    for name, (soft, hard) in json.loads(arguments[1]).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    # Python ignores these two; ignored signals are inherited and would surprise the command.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(arguments[2], arguments[2:])
    except OSError as error:
        sys.stderr.write(f"{arguments[2]}: {error.strerror}\n")
        sys.exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
