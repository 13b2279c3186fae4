"""What the operating system says of this process, under the names that every Prometheus client uses for it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agenthive_server.telemetry import Sample

PROC = Path("/proc")


def process_metrics(proc: Path = PROC) -> Iterator[Sample]:
    """Yield CPU time, memory, open files and start of this process; what the system does not tell is left out."""
    yield Sample("process_cpu_seconds_total", (), cpu_seconds())
    yield Sample("process_max_fds", (), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with suppress(OSError):
        yield Sample("process_open_fds", (), len(os.listdir(proc / "self" / "fd")))
    with suppress(OSError, ValueError, LookupError):
        virtual, resident = memory_bytes(proc)
        yield Sample("process_virtual_memory_bytes", (), virtual)
        yield Sample("process_resident_memory_bytes", (), resident)
    with suppress(OSError, ValueError, LookupError):
        yield Sample("process_start_time_seconds", (), _start_time(proc))


def cpu_seconds() -> float:
    """Return the user and system CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes(proc: Path = PROC) -> tuple[int, int]:
    """Return its virtual and its resident memory; raises `OSError` or `ValueError` where the system does not tell."""
    virtual, resident = map(int, (proc / "self" / "statm").read_text(encoding="ascii").split()[:2])
    page = os.sysconf("SC_PAGE_SIZE")
    return virtual * page, resident * page


def _start_time(proc: Path) -> float:
    # What comes after the command's name, which may hold anything: the 22nd field is the start in ticks since boot.
    fields = (proc / "self" / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    words = (proc / "stat").read_text(encoding="ascii").split()
    boot_time = int(words[words.index("btime") + 1])
    return boot_time + int(fields[19]) / os.sysconf("SC_CLK_TCK")
