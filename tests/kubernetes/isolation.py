"""A laboratory's own namespaces and control groups, so that two side by side do not see each other and nothing of one is left behind.

`enter()` is called first by every program of this folder. It starts the same program again in namespaces of its own (network, mounts, processes,
IPC, host name, control groups), waits for it and removes its folder and its control groups. Inside, the first process reaps orphans and dies with
the program, and with it the kernel ends every other process, containers included, whatever happened to them. The outer process is tied to the
inner one the same way: neither outlives the other, and with `tied` neither outlives the process that called.

Without root a user namespace gives the same, except nodes: those need control groups. Where there are no user namespaces either, the program runs as
it is, on free ports of the loopback address.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

INSIDE = "RUG_LAB"
# Variables that tell a program inside of where it is.
PASSED = (INSIDE, "RUG_LAB_ISOLATED", "RUG_LAB_ROOT")
PREFIX = "rug-lab-"
CONTROLLERS = pathlib.Path("/sys/fs/cgroup")
# Legacy hierarchies that kubelet, containerd and runc use.
LEGACY = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "perf_event", "net_cls", "net_prio")
PR_SET_PDEATHSIG = 1


def die_with_parent(number=signal.SIGKILL):
    """Has the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def folders():
    """Where laboratories keep their folders: a short name, because the paths of sockets have to be short."""
    return pathlib.Path(os.environ.get("RUG_LAB_TMPDIR", "/tmp"))


def running():
    """Folders of laboratories that run, with what is known about each."""
    found = {}
    for folder in sorted(folders().glob(PREFIX + "*")):
        with contextlib.suppress(OSError, ValueError):
            if not abandoned(folder):
                found[folder] = json.loads((folder / "outer.json").read_text())
    return found


def abandoned(folder):
    """Whether nobody holds a laboratory's folder any more."""
    with open(folder / "lock", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def sweep():
    """Removes what laboratories left behind that could not do it themselves."""
    for folder in folders().glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if folder.owner() == pathlib.Path("/proc/self").owner() and abandoned(folder):
                clean(folder)


def clean(folder):
    """Removes a laboratory's control groups and its folder."""
    with contextlib.suppress(OSError):
        for group in (folder / "groups").read_text().splitlines():
            remove_group(pathlib.Path(group))
    shutil.rmtree(folder, ignore_errors=True)


def remove_group(group):
    """Removes a control group with all below, as soon as the last process in it is gone."""
    deadline = time.monotonic() + 10
    while group.is_dir():
        for below, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(below)
        if time.monotonic() > deadline:
            print(f"cannot remove {group}", file=sys.stderr)
            return
        time.sleep(0.05)


def make_groups(name):
    """Makes a control group below the one of this process in every hierarchy, and returns them."""
    made = []
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        hierarchy = CONTROLLERS / ("unified" if number == "0" else names.removeprefix("name="))
        if not (hierarchy / "cgroup.procs").exists():
            continue
        parent = hierarchy / path.lstrip("/")
        group = (parent if parent.is_dir() else hierarchy) / name
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists():
                (group / file).write_text((group.parent / file).read_text())
        made.append(group)
    return made


def join(groups):
    """Moves this process into control groups."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def mount(kind, place, options=None, device="none"):
    """Mounts a file system of the kernel's."""
    subprocess.run(["mount", "-t", kind, *(["-o", options] if options else []), device, place], check=True, capture_output=True)


def mount_groups():
    """Mounts what belongs to this process's network and control groups over what belongs to those of its parent."""
    known = {line.split()[0] for line in pathlib.Path("/proc/cgroups").read_text().splitlines()[1:] if line.split()[1] != "0"}
    mount("sysfs", "/sys", device="sysfs")
    mount("tmpfs", "/sys/fs/cgroup", "mode=755", "tmpfs")
    for one in LEGACY:
        if one in known:
            (CONTROLLERS / one).mkdir()
            mount("cgroup", CONTROLLERS / one, one, "cgroup")
    (CONTROLLERS / "systemd").mkdir()
    mount("cgroup", CONTROLLERS / "systemd", "none,name=systemd", "cgroup")


def unified():
    """Whether the kernel has all controllers in the unified hierarchy, as newer distributions do."""
    return (CONTROLLERS / "cgroup.controllers").exists()


NAMESPACES = ["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private"]


def enter(tied=True, limit=None):
    """Returns only inside of namespaces, or where there can be none. `limit` ends the program after so many seconds."""
    if INSIDE in os.environ:
        if os.environ.get("RUG_LAB_ISOLATED") == "1" and os.getpid() == 1:
            become_first()
        return
    if tied:
        die_with_parent(signal.SIGTERM)
    sweep()
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=folders()))
    folder.chmod(0o755)
    lock = open(folder / "lock", "w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = 1
    try:
        code = outside(folder, limit)
    finally:
        clean(folder)
    sys.exit(code)


def outside(folder, limit):
    """Runs this program once more inside, and returns its exit code."""
    root = os.geteuid() == 0
    unshare = ["unshare", *([] if root else ["--user", "--map-root-user"]), *(["--cgroup"] if root else []), *NAMESPACES, "--"]
    isolated = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    groups = make_groups(folder.name) if root and isolated and not unified() else []
    (folder / "groups").write_text("\n".join(map(str, groups)))
    environment = {**os.environ, INSIDE: str(folder), "RUG_LAB_ISOLATED": "1" if isolated else "0", "RUG_LAB_ROOT": "1" if groups else "0"}
    if not isolated:
        print("no namespaces can be had here: the laboratory uses free ports of the loopback address", file=sys.stderr)

    def before():
        die_with_parent()
        join(groups)

    command = [*(unshare if isolated else []), sys.executable, *sys.argv]
    child = subprocess.Popen(command, env=environment, preexec_fn=before)
    (folder / "outer.json").write_text(json.dumps({"outer": os.getpid(), "command": sys.argv}))

    def first():
        """The program itself: the child of unshare."""
        if not isolated:
            return child.pid
        children = pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        return int(children[0]) if children else child.pid

    def forward(number, _frame):
        with contextlib.suppress(OSError):
            os.kill(first(), signal.SIGTERM if number == signal.SIGALRM else number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, forward)
    # A terminal sends it to the whole group, the program included.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if limit:
        signal.alarm(limit)
    return child.wait()


def become_first():
    """The first process of its namespace: prepares it, lets a child go on as the program, reaps, and ends with it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if os.environ["RUG_LAB_ROOT"] == "1":
        mount_groups()
    child = os.fork()
    if child == 0:
        die_with_parent()
        return

    def forward(number, _frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == child:
            # The kernel ends all others now.
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
