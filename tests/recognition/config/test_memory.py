# SPDX-License-Identifier: Apache-2.0
"""The memory that a machine or a container can give, read from files of Linux that a test makes."""
from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from recognition.config import memory
from recognition.config.memory import NO_LIMIT

GB = 1 << 30


def machine(root: Path, groups: str, **files: object) -> Path:
    """A machine that has 8 GB: ``files`` by their path below /sys/fs/cgroup, with ``__`` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable: {8 * GB >> 10} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, value in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def available(root: Path) -> int:
    with mock.patch.object(memory, "ROOT", root):
        return memory.available_memory()


def test_a_system_that_tells_nothing_sets_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path) == NO_LIMIT


def test_without_limits_the_kernels_estimate_counts(tmp_path: Path) -> None:
    assert available(machine(tmp_path / "a", "")) == 8 * GB
    unlimited = machine(tmp_path / "b", "0::/\n", memoryDOTmax="max", memoryDOTcurrent=GB)
    assert available(unlimited) == 8 * GB
    old = machine(tmp_path / "c", "4:memory:/\n", memory__memoryDOTlimit_in_bytes=2**63 - 4096,
                  memory__memoryDOTusage_in_bytes=GB)
    assert available(old) == 8 * GB


@pytest.mark.parametrize("path", ["/", "/docker/abc"])  # in a container, or the path that its host sees
def test_a_containers_limit_counts_without_what_the_kernel_can_drop(tmp_path: Path, path: str) -> None:
    new = machine(tmp_path / "a", f"0::{path}\n", memoryDOTmax=4 * GB, memoryDOTcurrent=3 * GB,
                  memoryDOTstat=f"anon 7\ninactive_file {GB // 2}\nactive_file 9")
    assert available(new) == 3 * GB // 2
    old = machine(tmp_path / "b", f"3:cpu:/x\n4:hugetlb,memory:{path}\n", memory__memoryDOTlimit_in_bytes=4 * GB,
                  memory__memoryDOTusage_in_bytes=3 * GB, memory__memoryDOTstat="total_inactive_file 1\n")
    assert available(old) == GB + 1


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    found = machine(tmp_path, "0::/slurm/job7\n", slurm__memoryDOTmax=2 * GB, slurm__memoryDOTcurrent=GB,
                    slurm__job7__memoryDOTmax="max", slurm__job7__memoryDOTcurrent=GB)
    assert available(found) == GB


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path: Path) -> None:
    assert available(machine(tmp_path, "0::/\n", memoryDOTmax=GB, memoryDOTcurrent=2 * GB)) == 0
