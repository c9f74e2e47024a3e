"""Number of cores available to a process: affinity and control group quotas may limit it.

It lies in this package, because the compilation of the C++ operations needs it too.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def machine_cores() -> int:
    """Return the cores that this process and its children may use together: by affinity and control group quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def cores(processes: int = 1) -> int:
    """Return the threads for each of several processes that share the machine, at most OMP_NUM_THREADS."""
    share = max(1, machine_cores() // processes)
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # further numbers are for nested regions
    return min(share, int(first)) if first.isdecimal() and int(first) > 0 else share


def cgroup_quota(proc: Path = PROC) -> float | None:
    """Return the quota of the process's control groups and their parents in cores, or None without a limit.

    Version 2 has "50000 100000" or "max 100000" in cpu.max, version 1 a quota and a period in two files.

    Args:
        proc: Folder of the process in /proc.
    """
    quotas = []
    for version, mount, root, group in _groups(proc):
        inside = _below(group, root)
        for folder in (inside, *inside.parents):
            place = mount / folder
            try:
                if version == 2:
                    quota, period = (place / "cpu.max").read_text().split()
                else:
                    quota = (place / "cpu.cfs_quota_us").read_text().strip()
                    period = (place / "cpu.cfs_period_us").read_text()
                if quota != "max" and int(quota) > 0 and int(period) > 0:
                    quotas.append(int(quota) / int(period))
            except (OSError, ValueError):  # the root has no quota, and a container hides its parents
                continue
    return min(quotas, default=None)


def _below(group: str, root: str) -> PurePosixPath:
    """Return a group's folder below a mount that shows the tree from `root` on."""
    path = PurePosixPath("/", *(part for part in PurePosixPath(group).parts if part not in ("/", "..")))
    return path.relative_to(root if path.is_relative_to(root) else "/")


def _groups(proc: Path) -> list[tuple[int, Path, str, str]]:
    """Return (version, mount point, mounted group, group of the process) of each tree that limits CPUs."""
    try:
        own = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    groups = {2: next((path for _, names, path in own if not names), None)}
    groups[1] = next((path for _, names, path in own if "cpu" in names.split(",")), None)
    found = []
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "cpu" in options else 0
        group = groups.get(version)
        if group is not None:
            root, mount = (text.encode().decode("unicode_escape") for text in fields[3:5])  # \040 is a space
            found.append((version, Path(mount), root, group))
    return found
