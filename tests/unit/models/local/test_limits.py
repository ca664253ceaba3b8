"""The local engine takes what its process may use, which is often less than what the machine has."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_auction_chain.models.local import limits
from llm_auction_chain.models.local.limits import cpu_limit, import_torch, memory_limit

CGROUP_1 = "9:name=systemd:/\n4:memory:/pod/app\n3:cpuset:/\n1:cpu,cpuacct:/pod/app\n0::/\n"
CGROUP_2 = "0::/pod/app\n"


def machine(root, cgroup, files):
    """Write the files of a machine that the module reads."""
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Path(root)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        (CGROUP_2, {"pod/app/cpu.max": "150000 100000\n"}, 1.5),
        (CGROUP_2, {"pod/app/cpu.max": "max 100000\n"}, math.inf),
        (CGROUP_2, {"pod/app/cpu.max": "max 100000\n", "pod/cpu.max": "200000 100000\n"}, 2.0),
        (CGROUP_2, {"pod/app/cpu.max": "50000 100000\n", "pod/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/as/the/host/names/it", {"cpu.max": "300000 100000\n"}, 3.0),
        (CGROUP_1, {"cpu/pod/app/cpu.cfs_quota_us": "25000\n", "cpu/pod/app/cpu.cfs_period_us": "50000\n"}, 0.5),
        (CGROUP_1, {"cpu/pod/app/cpu.cfs_quota_us": "-1\n", "cpu/pod/app/cpu.cfs_period_us": "100000\n"}, math.inf),
        (CGROUP_1, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        (CGROUP_1, {}, math.inf),
    ],
)
def test_a_quota_limits_the_cores(tmp_path, cgroup, files, cores):
    assert cpu_limit(machine(tmp_path, cgroup, files)) == cores


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        (CGROUP_2, {"pod/app/memory.max": "1000\n", "pod/app/memory.current": "300\n"}, 700),
        (CGROUP_2, {"pod/app/memory.max": "max\n", "pod/app/memory.current": "300\n"}, math.inf),
        (CGROUP_2, {"pod/memory.max": "1000\n", "pod/memory.current": "900\n", "pod/app/memory.max": "500\n"}, 100),
        (
            CGROUP_2,
            {
                "memory.max": "1000",
                "memory.current": "900",
                "memory.stat": "anon 600\nfile 300\ninactive_file 200\nactive_file 50\n",
            },
            350,
        ),
        (
            CGROUP_1,
            {
                "memory/pod/app/memory.limit_in_bytes": "1000\n",
                "memory/pod/app/memory.usage_in_bytes": "900\n",
                "memory/pod/app/memory.stat": "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n",
            },
            400,
        ),
        (CGROUP_1, {"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "1200\n"}, 0),
        (CGROUP_1, {}, math.inf),
    ],
)
def test_a_limit_leaves_what_the_process_has_not_taken(tmp_path, cgroup, files, free):
    assert memory_limit(machine(tmp_path, cgroup, files)) == free


def test_a_machine_without_control_groups_has_no_limit(tmp_path):
    assert cpu_limit(tmp_path) == memory_limit(tmp_path) == math.inf


@pytest.fixture(scope="module")
def fake_root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.lists(st.integers(), max_size=3).map(lambda n: " ".join(map(str, n))),
)


@given(cgroup=st.one_of(TEXTS, st.sampled_from([CGROUP_1, CGROUP_2])), first=TEXTS, second=TEXTS, third=TEXTS)
def test_no_text_of_the_kernel_stops_a_reply(fake_root, cgroup, first, second, third):
    names = ("cpu.max", "pod/app/cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    names += ("memory.max", "memory.current", "memory.stat", "memory/memory.limit_in_bytes", "memory/memory.stat")
    texts = (first, second, third)
    root = machine(fake_root, cgroup, {name: texts[k % 3] for k, name in enumerate(names)})
    assert cpu_limit(root) > 0
    assert memory_limit(root) >= 0


@pytest.fixture
def torch(monkeypatch):
    """A torch that is imported already, with the number of threads that it chose by itself."""
    fake = SimpleNamespace(threads=8)
    fake.get_num_threads = lambda: fake.threads
    fake.set_num_threads = lambda number: setattr(fake, "threads", number)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(limits, "_default_threads", lambda: {8, 4})
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.mark.parametrize(("quota", "threads"), [(0.25, 1), (1.0, 1), (1.5, 2), (8.0, 8), (9.0, 8), (math.inf, 8)])
def test_no_more_threads_than_the_quota_allows(monkeypatch, torch, quota, threads):
    monkeypatch.setattr(limits, "cpu_limit", lambda: quota)
    import_torch.__wrapped__()
    assert torch.threads == threads


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_variables_win_over_the_quota(monkeypatch, torch, name):
    monkeypatch.setenv(name, "8")
    monkeypatch.setattr(limits, "cpu_limit", lambda: 1.0)
    import_torch.__wrapped__()
    assert torch.threads == 8


def test_a_number_that_the_user_set_in_torch_wins_over_the_quota(monkeypatch, torch):
    torch.threads = 6
    monkeypatch.setattr(limits, "cpu_limit", lambda: 1.0)
    import_torch.__wrapped__()
    assert torch.threads == 6


def test_the_environment_stays_as_it_was(monkeypatch, torch):
    before = dict(os.environ)
    import_torch.__wrapped__()
    assert dict(os.environ) == before


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
"""
IMPORT = """
from llm_auction_chain.models.local.limits import import_torch
import_torch()
import torch
print(torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"))
"""


def on_one_core(script, *arguments, **user):
    """Run a script in a process bound to one core, with these variables of its user."""
    ours = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *limits._WAITING)
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **user}
    command = [sys.executable, "-c", ON_ONE_CORE + script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603  our own code


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind no process to cores")
@pytest.mark.parametrize(("user", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "70"}, "70")])
def test_on_one_core_there_is_one_thread_that_waits_as_it_should(user, spins):
    done = on_one_core(IMPORT, **user)
    assert done.stdout.split() == ["1", "None"], "one thread, and the environment as it was"
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
