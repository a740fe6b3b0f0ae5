"""Nodes: a real kubelet with containerd and runc each, in namespaces and control groups of its own.

A node's first process (this file, called as a program) prepares its namespaces: mounts of its own over /run, /var/lib and /var/log, so that kubelet and
containerd keep everything where they usually do and none of it is seen outside, and files in place of settings of the kernel that a kubelet would
change for the whole machine. It then waits and reaps. When it is killed the kernel ends all of the node, containers included: a power failure.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True

import isolation
from control import DNS_SERVICE, GATEWAY
from images import PAUSE
from processes import Failure, Process, run, until

BRIDGE = "lab0"
# What a kubelet sets for the whole machine, with what it wants there.
SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "@PAUSE@"
  disable_apparmor = true
  restrict_oom_score_adj = true
  max_container_log_line_size = 16384
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "@FOLDER@/cni"
"""


def network(cidr):
    """The configuration of the CNI plugins: a bridge on each node with a range of addresses of its own; routes lead between nodes."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return {"cniVersion": "0.4.0", "name": "lab", "plugins": [bridge]}


def kubelet(node, pki, options):
    """The configuration of a kubelet."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"{node.name}-server.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}-server.key"),
        "address": "0.0.0.0",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": str(node.folder / "resolv.conf"),
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "10s",
        "nodeLeaseDurationSeconds": 8,
        "maxPods": 250,
        # The disk is the machine's, and what is free on it is no affair of a test.
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "registerWithTaints": [],
        **options,
    }


class Node:
    """One node. `index` counts from 1 and gives the addresses."""

    def __init__(self, control, index, name=None, labels=None, options=None):
        self.control, self.index, self.name = control, index, name or f"node-{index}"
        self.folder = control.folder / f"n{index}"
        self.address, self.pods = f"10.80.0.{10 + index}", f"10.81.{index}.0/24"
        self.labels = {"topology.kubernetes.io/zone": f"zone-{index}", **(labels or {})}
        self.options = options or {}
        self.holder = None
        self.groups = []
        self.processes = {}

    # Power

    def power_on(self):
        """Starts the node, also once more after a power failure: what was on its disk is still there."""
        if not self.folder.exists():
            self.write()
        self.groups = isolation.make_groups(self.name)
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = ["unshare", "--cgroup", *isolation.NAMESPACES, "--", sys.executable, __file__, self.folder, self.name]
        self.holder = self.spawn("node", command)
        until(lambda: ready.exists() or self.broken(self.holder), 20, f"{self.name} has its namespaces")
        self.connect()
        self.start("containerd", ["containerd", "--config", self.folder / "containerd.toml"])
        until(lambda: self.inside("ctr", "version", check=False).returncode == 0, 30, f"containerd of {self.name} answers")
        return self

    def run_cluster(self):
        """Starts the programs of the cluster; containerd and its images have to be there."""
        self.start_proxy()
        self.start_kubelet()

    def power_off(self):
        """Ends everything on the node at once; nothing on it can say goodbye."""
        if self.holder is None:
            return
        first = self.first(self.holder)
        if first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        for process in [*self.processes.values(), self.holder]:
            process.kill()
        self.processes, self.holder = {}, None
        subprocess.run(["ip", "link", "delete", f"v{self.index}"], capture_output=True, check=False)
        for group in self.groups:
            isolation.remove_group(group)

    def restart(self):
        """Powers it on after `power_off`, with all that runs on a node."""
        self.power_on()
        self.run_cluster()

    # Faults

    def cut(self):
        """Cuts the node off the network; everything on it goes on."""
        run(["ip", "link", "set", f"v{self.index}", "down"])

    def mend(self):
        """Ends `cut`."""
        run(["ip", "link", "set", f"v{self.index}", "up"])

    def stop_kubelet(self):
        """Ends the kubelet; its containers go on."""
        self.signal("kubelet", signal.SIGTERM)
        self.processes.pop("kubelet").stop(20)

    def start_kubelet(self):
        pki = self.control.folder / "pki"
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items() if not key.startswith("node-role.kubernetes.io"))
        flags = [
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self.control.folder / self.name}.kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--node-labels={labels}",
            "--v=2",
        ]
        if not (pki / f"{self.name}-server.crt").exists():
            self.control.authority.issue(f"{self.name}-server", self.name, names=[self.name, self.address])
        (self.folder / "kubelet.json").write_text(json.dumps(kubelet(self, pki, self.options)))
        self.start("kubelet", [self.control.binaries / "kubelet", *flags])

    def start_proxy(self):
        self.start("kube-proxy", [self.control.binaries / "kube-proxy", f"--config={write_proxy(self.control, self.folder, self.name)}"])

    def pause_kubelet(self):
        """Stops the kubelet as a machine that swaps does; `resume_kubelet` lets it go on."""
        self.signal("kubelet", signal.SIGSTOP)

    def resume_kubelet(self):
        self.signal("kubelet", signal.SIGCONT)

    # Parts

    def load_image(self, archive):
        """Imports an image out of an archive as docker, podman, buildah or `images.write` make them."""
        self.inside("ctr", "--namespace", "k8s.io", "images", "import", "--all-platforms=false", archive, timeout=300)

    def inside(self, *command, timeout=60, check=True):
        """Runs a program on the node."""
        first = self.first(self.holder)
        return run(["nsenter", "--target", str(first), "--all", "--wdns=/", "--", *command], timeout=timeout, check=check)

    def start(self, name, command):
        """Starts a process on the node that goes on."""
        first = self.first(self.holder)
        self.processes[name] = self.spawn(name, ["nsenter", "--target", str(first), "--all", "--", *command])

    def spawn(self, name, command):
        log = self.control.logs / f"{self.name}-{name}.log"
        process = GroupProcess(name, command, log)
        process.groups = self.groups
        return process.start()

    def signal(self, name, number):
        """Sends a signal to a process on the node: the child of the one that was started."""
        pid = self.first(self.processes[name])
        if pid:
            os.kill(pid, number)

    @staticmethod
    def first(process):
        """The first child of a process, which is the program itself behind unshare and nsenter."""
        if process is None or not process.runs():
            raise Failure("the node is off")
        pid = process.child.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    @staticmethod
    def broken(process):
        if not process.runs():
            raise Failure("\n".join(process.lines()[-10:]))
        return False

    def connect(self):
        """Gives the node its link, addresses and routes."""
        first, link = self.first(self.holder), f"v{self.index}"
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(first)])
        run(["ip", "link", "set", link, "master", BRIDGE, "up"])
        self.inside("ip", "link", "set", "lo", "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "route", "add", "default", "via", GATEWAY)
        run(["ip", "route", "replace", self.pods, "via", self.address])

    def write(self):
        """Its folder and the files in it."""
        for name in ("cni", "lib", "log"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "cni" / "10-lab.conflist").write_text(json.dumps(network(self.pods)))
        (self.folder / "containerd.toml").write_text(CONTAINERD.replace("@PAUSE@", PAUSE).replace("@FOLDER@", str(self.folder)))
        # Names that are no service's are nobody's: there is no network outside.
        (self.folder / "resolv.conf").write_text(f"nameserver {GATEWAY}\n")
        self.control.client_kubeconfig(self.name, f"system:node:{self.name}", ["system:nodes"])


class GroupProcess(Process):
    """A process that begins its life in the node's control groups."""

    groups = ()

    def start(self):
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                start_new_session=True,
                preexec_fn=lambda: isolation.join(self.groups),
            )
        return self


def write_proxy(control, folder, name):
    """Writes the configuration of kube-proxy, which turns Services into rules of nftables."""
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": str(control.folder / "proxy.kubeconfig")},
        "detectLocalMode": "BridgeInterface",
        "detectLocal": {"bridgeInterface": "cni0"},
        "healthzBindAddress": "",
        "metricsBindAddress": "127.0.0.1:10249",
        # These are the whole machine's.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nftables": {"minSyncPeriod": "100ms"},
    }
    path = pathlib.Path(folder) / "kube-proxy.json"
    path.write_text(json.dumps(configuration))
    return path


def bind(source, place):
    subprocess.run(["mount", "--bind", source, place], check=True)


def first_process(folder, name):
    """What the first process of a node does."""
    subprocess.run(["hostname", name], check=True)
    isolation.mount_groups()
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    isolation.mount("tmpfs", "/run", "mode=755", "tmpfs")
    bind(folder / "lib", "/var/lib")
    bind(folder / "log", "/var/log")
    settings = folder / "settings"
    settings.mkdir(exist_ok=True)
    # A machine that was off has booted since.
    with open("/proc/sys/kernel/random/uuid", encoding="utf-8") as fresh:
        identity = fresh.read()
    (settings / "boot_id").write_text(identity)
    if not (settings / "machine-id").exists():
        (settings / "machine-id").write_text(identity.replace("-", ""))
    bind(settings / "boot_id", "/proc/sys/kernel/random/boot_id")
    if os.path.exists("/etc/machine-id"):
        bind(settings / "machine-id", "/etc/machine-id")
    for setting, value in SETTINGS.items():
        place = pathlib.Path("/proc/sys") / setting
        if place.exists():
            file = settings / setting.replace("/", "-")
            file.write_text(value + "\n")
            bind(file, place)
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # What a pod gets back from a Service's pod on the same node has to pass through the node's rules, too.
    pathlib.Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")
    (folder / "ready").write_text("")
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.5)


if __name__ == "__main__":
    first_process(pathlib.Path(sys.argv[1]), sys.argv[2])
