"""How many threads and processes a machine is taken for: affinity, quotas of control groups, OMP_NUM_THREADS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastlocal.commands.flags import parse
from fastlocal.kernels import cores as counting
from fastlocal.runs.from_config import run_from_config

V2, V1 = "0::/", "4:cpu,cpuacct:/"


def process(folder: Path, group: str, root: str, files: dict[str, str]) -> Path:
    """/proc/self of a process in a control group, whose tree is mounted from `root` on with these files."""
    mount = folder / "a tree"
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    kind = "cgroup2 cgroup rw" if group.startswith("0::") else "cgroup cgroup rw,cpu,cpuacct"
    place = str(mount).replace(" ", "\\040")
    (folder / "cgroup").write_text(f"9:memory:/other\n{group}\n")
    (folder / "mountinfo").write_text(f"1 0 0:1 / / rw - ext4 disk rw\n30 25 0:26 {root} {place} rw,nosuid - {kind}\n")
    return folder


@pytest.mark.parametrize(
    ("group", "root", "files", "quota"),
    [
        (V2, "/", {"cpu.max": "50000 100000\n"}, 0.5),
        (V2, "/", {"cpu.max": "max 100000\n"}, None),
        (V2, "/", {}, None),
        (V2 + "a/b", "/", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        (V2 + "a/b", "/", {"a/b/cpu.max": "20000 10000", "a/cpu.max": "300000 100000"}, 2.0),
        (V2 + "docker/x", "/", {"cpu.max": "25000 100000"}, 0.25),
        (V2 + "docker/x/y", "/docker/x", {"cpu.max": "max 100000", "y/cpu.max": "70000 100000"}, 0.7),
        (V2 + "../x", "/", {"cpu.max": "70000 100000"}, 0.7),
        (V2, "/", {"cpu.max": "nonsense"}, None),
        (V1, "/", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        (V1 + "job", "/", {"job/cpu.cfs_quota_us": "250000\n", "job/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1 + "docker/x", "/docker/x", {"cpu.cfs_quota_us": "10000", "cpu.cfs_period_us": "100000"}, 0.1),
    ],
)
def test_quotas(group: str, root: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert counting.cgroup_quota(process(tmp_path, group, root, files)) == quota


def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for quota, whole in ((None, 8), (0.5, 1), (2.5, 3), (20.0, 8)):
        monkeypatch.setattr(counting, "cgroup_quota", lambda quota=quota: quota)
        assert (counting.machine_cores(), counting.cores(), counting.cores(3)) == (whole, whole, max(1, whole // 3))
    for asked, threads, each in (("1", 1, 1), ("3,2", 3, 3), ("16", 8, 4), ("", 8, 4), ("x", 8, 4), ("0", 8, 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert (counting.machine_cores(), counting.cores(), counting.cores(2)) == (8, threads, each)


def test_a_run_takes_as_many_threads(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(counting, "cgroup_quota", lambda: None)
    words = "--dataset npz --batch-size 4 --clients 8 --epochs 1 --device cpu --executor threaded".split()
    for threads in (1, 2):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        config = run_from_config(parse([*words, "--data-pth", str(data)]).run, lambda text: None, dry_run=True).config
        assert (config.clients, config.machine.workers) == (8, threads)
