"""What this process may use of the machine: threads, and the limits of its control groups (Linux)."""

import math
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

__all__ = ["cpu_limit", "import_torch", "memory_limit"]

_ROOT = Path("/")
# With one of these the user chooses.
_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


@cache
def import_torch() -> None:
    """Import torch with threads that sleep while they wait, and no more of them than `cpu_limit` allows.

    By default a thread of OpenMP waits for the others in a loop. Where a neighbour holds the others' core, that takes
    the very time for which they wait. OpenMP reads its variables once, so the policy is set while torch is imported.
    A torch that is imported already keeps its policy. torch itself counts the cores that the process may run on, and no
    quota. The user's own variables and `torch.set_num_threads` stay.
    """
    imported = "torch" in sys.modules
    policy = {} if imported or any(name in os.environ for name in _WAITING) else {"OMP_WAIT_POLICY": "PASSIVE"}
    os.environ.update(policy)
    try:
        import torch

        threads = torch.get_num_threads()  # by now every OpenMP has read its variables
    finally:
        for name in policy:
            os.environ.pop(name, None)  # another thread may import, too
    chosen = any(name in os.environ for name in _NUMBER) or (imported and threads not in _default_threads())
    if not chosen and threads > (limit := cpu_limit()):
        torch.set_num_threads(math.ceil(limit))


def _default_threads() -> set[int | None]:
    """Return the numbers of threads that torch chooses by itself: logical or physical cores."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {usable, psutil.cpu_count(logical=False)}


def cpu_limit(root: Path = _ROOT) -> float:
    """Return how many cores the quotas of control groups allow, or infinity.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    limits = [math.inf]
    for group in _groups("cpu", root):
        second = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        quota, period = (*second.split(), "", "")[:2]
        if (most := _number(quota)) < math.inf:
            limits.append(most / _number(period, 100_000))
    return min(limits)


def memory_limit(root: Path = _ROOT) -> float:
    """Return how many bytes the limits of control groups leave, or infinity. Pages of files count as free.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    free = [math.inf]
    for group in _groups("memory", root):
        for limit, usage, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            if (most := _number(_read(group / limit))) < math.inf:
                used = _number(_read(group / usage), 0)
                pages = (f"{prefix}active_file ", f"{prefix}inactive_file ")
                lines = _read(group / "memory.stat").splitlines()
                files = sum(_number(line.split()[-1], 0) for line in lines if line.startswith(pages))
                free.append(max(0, most - max(0, used - files)))
    return min(free)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the process's control group and its parents, of version 1 and 2.

    A container may name its group as the host does. That folder is missing within, and the container's own group is at
    the top.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if not names or controller in names.split(","):
            place = PurePosixPath("/", path)
            for each in (place, *place.parents):
                yield root / "sys/fs/cgroup" / (controller if names else "") / each.relative_to("/")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _number(text: str, otherwise: float = math.inf) -> float:
    """Return a positive whole number. Other texts, such as "max" and "-1", set no limit."""
    try:
        number = int(text)
    except ValueError:
        return otherwise
    return number if number > 0 else otherwise
