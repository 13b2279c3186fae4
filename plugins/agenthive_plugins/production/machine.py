"""What the machine says of itself: processors, memory, disk, network, and since when this process runs.

Read from `/proc`, which costs no system call worth mentioning; what is not there (another system, a closed sandbox) is
None and leaves no trace in the series.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_MEGABITS = 8 / 1e6


@dataclass(frozen=True, slots=True)
class Machine:
    """One reading. `busy` and `ticks` are those of all processors since the start, `sent` bytes of all networks."""

    busy: int | None = None
    ticks: int | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None
    sent: int | None = None


def read_machine(disk: Path, proc: Path = Path("/proc")) -> Machine:
    """Return how the machine is now; `disk` is a folder on the disk to look at."""
    busy, ticks = _processors(_text(proc / "stat"))
    return Machine(
        busy=busy,
        ticks=ticks,
        memory_percent=_memory(_text(proc / "meminfo")),
        disk_percent=_disk(disk),
        sent=_network(_text(proc / "net" / "dev")),
    )


def cpu_percent(before: Machine, after: Machine) -> float | None:
    """Return how busy the processors were between two readings."""
    if before.busy is None or after.busy is None or before.ticks is None or after.ticks is None:
        return None
    ticks = after.ticks - before.ticks
    return min(100.0, max(0.0, 100.0 * (after.busy - before.busy) / ticks)) if ticks > 0 else None


def network_mbps(before: Machine, after: Machine, seconds: float) -> float | None:
    """Return what went over the networks between two readings, in megabits a second, both ways together."""
    if before.sent is None or after.sent is None or seconds <= 0:
        return None
    return max(0, after.sent - before.sent) * _MEGABITS / seconds


def process_age(proc: Path = Path("/proc")) -> float | None:
    """Return for how many seconds this process has been running."""
    uptime, ticks = _text(proc / "uptime").split()[:1], _start_ticks(proc)
    try:
        return float(uptime[0]) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError, OSError):
        return None


def process_identity(proc: Path = Path("/proc")) -> str:
    """Return what tells this process from every other one, also after the machine was started again; empty: unknown."""
    boot, ticks = _text(proc / "sys" / "kernel" / "random" / "boot_id").strip(), _start_ticks(proc)
    return f"{boot}/{os.getpid()}/{ticks}" if boot and ticks else ""


def _start_ticks(proc: Path) -> str:
    # What comes after the command's name, which may hold anything: the 22nd field.
    fields = _text(proc / "self" / "stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _processors(stat: str) -> tuple[int | None, int | None]:
    first = stat.partition("\n")[0].split()
    try:
        # user nice system idle iowait irq softirq steal; what guests use is in user already.
        ticks = [int(field) for field in first[1:9]]
    except ValueError:
        return None, None
    if len(ticks) < 4:
        return None, None
    idle = sum(ticks[3:5])
    return sum(ticks) - idle, sum(ticks)


def _memory(meminfo: str) -> float | None:
    values: dict[str, int] = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            values[name] = int(number[0])
    total, available = values.get("MemTotal"), values.get("MemAvailable")
    return 100.0 * (total - available) / total if total and available is not None else None


def _disk(path: Path) -> float | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return 100.0 * usage.used / usage.total if usage.total else None


def _network(dev: str) -> int | None:
    found: int | None = None
    for line in dev.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and name.strip() != "lo" and len(fields) >= 9 and fields[0].isdigit() and fields[8].isdigit():
            found = (found or 0) + int(fields[0]) + int(fields[8])
    return found
