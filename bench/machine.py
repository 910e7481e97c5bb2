"""The machine that the figures belong to, and what its processes use, from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Final

import psycopg

_TICK: Final = os.sysconf("SC_CLK_TCK")


def describe(database_url: str | None, mosquitto: str | None, nats: str | None) -> dict[str, str]:
    """Cores, memory and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "memory": f"{memory:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    if database_url is not None:
        with psycopg.connect(database_url) as connection:
            row = connection.execute("show server_version").fetchone()
            found["PostgreSQL"] = str(row[0]) if row else "?"
    if mosquitto is not None:
        found["mosquitto"] = _first_line(mosquitto, "-h").removeprefix("mosquitto version ")
    if nats is not None:
        found["nats-server"] = _first_line(nats, "--version").rpartition(" ")[2]
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "?"


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def command_of(pid: int) -> bytes:
    """The command line of a process, or the title that it gave itself; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def cpu_s(pid: int) -> float:
    """CPU seconds of one process so far."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0


def family_cpu_s(pid: int) -> float:
    """CPU seconds of a process, its living children, and those of its children that have ended."""
    fields = _stat(pid)
    own = sum(map(int, fields[11:15])) / _TICK if fields else 0.0
    return own + sum(cpu_s(child) for child in children(pid))


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory now and at its highest, MB (10^6 bytes)."""
    values = {"VmRSS": 0.0, "VmHWM": 0.0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in values:
            values[key] = int(rest.split()[0]) * 1024 / 1e6
    return values["VmRSS"], values["VmHWM"]
