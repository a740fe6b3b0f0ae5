#!/usr/bin/env python3
"""A laboratory: a real Kubernetes on this machine, for tests.

  lab.py up [--nodes N] [--faults] [--simulated] -- COMMAND...   runs a command in it, with KUBECONFIG and PATH set, and ends it
  lab.py up --hold [--nodes N] ...                               runs until it is told to end (Ctrl-C, `lab.py down`) or for --minutes
  lab.py enter [ID] -- COMMAND...                                runs a command in one that runs
  lab.py list                                                    shows those that run
  lab.py down ID                                                 ends one

README.md says what is real in it. The programs are built by `build` in this folder; `RUG_LAB_BIN` names another folder of them. In a Python test:

    isolation.enter()                         # first, in the main program
    with lab.Lab(nodes=2) as cluster:
        cluster.apply({"apiVersion": "v1", ...})
        until(lambda: cluster.get("pod", "a")["status"]["phase"] == "Running", 60)
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import control
import images
import isolation
import services
from nodes import BRIDGE, Node, write_proxy
from policies import Policies
from processes import Failure, Process, run, terminate_on_signals, until
from volumes import Volumes


class Lab:
    """A cluster. Everything is ended and removed when its `with` block is left.

    `nodes` is the number of real nodes; `faults` puts the fault proxy in front of the API server for all pods, and for `faulty_kubeconfig`;
    `simulated` runs kwok; `policies` enforces NetworkPolicies. `api`, `controllers` and `scheduler` are dictionaries of further flags, `kubelet`
    of further settings. `api_binaries` is the folder of another API server.
    """

    def __init__(self, nodes=0, faults=False, simulated=False, policies=False, binaries=None, kubelet=None, **options):
        self.binaries = control.where(binaries)
        if not (self.binaries / "kube-apiserver").exists():
            raise Failure(f"nothing is built in {self.binaries}: run tests/kubernetes/build")
        self.isolated = os.environ.get("RUG_LAB_ISOLATED") == "1"
        if nodes and os.environ.get("RUG_LAB_ROOT") != "1":
            raise Failure("nodes need root, control groups of version 1, and isolation.enter() in the main program")
        base = os.environ.get(isolation.INSIDE)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="k", dir=base))
        self.control = control.ControlPlane(self.folder, self.binaries, self.isolated, options)
        self.nodes = [Node(self.control, index, options=kubelet) for index in range(1, nodes + 1)]
        self.processes = []
        self.with_faults, self.with_simulated = faults, simulated
        self.faults = self.names = self.simulated = None
        self.policies = Policies(self) if policies else None
        self.volumes = Volumes(self)
        self.times = {}

    # Life

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()

    def start(self):
        start = time.monotonic()
        if self.isolated:
            self.make_network()
        self.control.start()
        self.times["control plane"] = time.monotonic() - start
        if self.with_faults:
            self.faults = services.Faults(self.control)
            self.faults.start()
        self.apply_endpoint()
        if self.isolated:
            self.start_services()
        if self.with_simulated:
            self.simulated = services.Simulated(self.control)
            self.simulated.start()
        if self.nodes:
            self.start_nodes()
            self.volumes.start()
            if self.policies:
                self.policies.start()
        if self.names:
            self.names.wait()
        if self.nodes:
            self.times["nodes"] = time.monotonic() - start
        return self

    def stop(self):
        """Ends everything; what cannot be ended is said and does not keep the rest."""
        parts = [part.stop for part in (self.policies, self.volumes) if part and part.thread.is_alive()]
        parts += [node.power_off for node in self.nodes]
        parts += [part.process.kill for part in (self.simulated, self.names, self.faults) if part]
        parts += [process.kill for process in self.processes] + [self.control.stop]
        if self.isolated:
            parts.append(lambda: subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False))
        for part in parts:
            try:
                part()
            except (Failure, OSError, subprocess.SubprocessError) as error:
                print(f"cannot be stopped: {error}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_network(self):
        """The bridge that nodes are connected to; this side of it is where the control plane and the tests are."""
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "add", f"{control.GATEWAY}/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        # Where a Service's address leads is decided by rules, but only for what has a way at all.
        run(["ip", "route", "add", control.SERVICES, "dev", BRIDGE])
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def apply_endpoint(self):
        """Lets the Service `kubernetes` lead to the API server, or to the fault proxy in front of it."""
        port = self.faults.port if self.faults else self.control.api_port
        address = control.GATEWAY if self.isolated else "192.0.2.1"
        self.apply(services.endpoint("kubernetes", "default", address, port, "https"))

    def start_services(self):
        """Names, and the addresses of Services for processes beside the nodes: tests, and the API server that calls webhooks."""
        self.apply(*services.dns_objects())
        if (self.binaries / "coredns").exists():
            self.names = services.Names(self.control)
            self.names.start()
        else:
            print("CoreDNS is not built yet: no names of Services", file=sys.stderr)
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "lab-proxy"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
            "subjects": [{"kind": "User", "name": "system:kube-proxy", "apiGroup": "rbac.authorization.k8s.io"}],
        }
        self.apply(binding)
        if not self.nodes:
            self.start_proxy("lab")

    def start_proxy(self, name):
        """Makes the addresses of Services known here. The proxy waits for half a minute for a node of its name: with one it is there at once."""
        configuration = write_proxy(self.control, self.folder, name)
        self.spawn("kube-proxy", [self.binaries / "kube-proxy", f"--config={configuration}"])

    def start_nodes(self):
        for node in self.nodes:
            node.power_on()
        own = images.tool(self.binaries, self.folder / "images")
        for archive in own:
            self.load_image(archive)
        for node in self.nodes:
            node.run_cluster()

        def ready():
            found = {one["metadata"]["name"]: one for one in self.list("nodes")}
            return all(condition(found.get(node.name), "Ready") == "True" for node in self.nodes)

        until(ready, 90, "all nodes are ready")
        self.start_proxy(self.nodes[0].name)

    def spawn(self, name, command, env=None):
        """Starts a process beside the nodes that ends with the laboratory."""
        process = Process(name, command, self.control.logs / f"{name}.log", env).start()
        self.processes.append(process)
        return process

    # Clients

    @property
    def kubeconfig(self):
        """The administrator's kubeconfig, straight to the API server."""
        return self.control.kubeconfig

    @property
    def faulty_kubeconfig(self):
        """The administrator's kubeconfig through the fault proxy."""
        return self.faults.kubeconfig

    @property
    def environment(self):
        """What a command needs to be a client."""
        return {"KUBECONFIG": str(self.kubeconfig), "PATH": f"{self.binaries}:{os.environ['PATH']}", "HELM_CACHE_HOME": str(self.folder / "helm/cache"),
                "HELM_CONFIG_HOME": str(self.folder / "helm/config"), "HELM_DATA_HOME": str(self.folder / "helm/data"),
                "KUBECACHEDIR": str(self.folder / "kubecache"), "RUG_LAB_FOLDER": str(self.folder),
                **{name: os.environ[name] for name in isolation.PASSED if name in os.environ}}  # fmt: skip

    def kubectl(self, *words, given=None, timeout=60, kubeconfig=None, check=True):
        """Runs kubectl; returns what it printed."""
        env = {**self.environment, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        return run([self.binaries / "kubectl", *words], env, given, timeout, check)

    def helm(self, *words, version=4, timeout=300, kubeconfig=None, check=True):
        """Runs Helm, 4 or 3; returns what it printed."""
        env = {**self.environment, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        return run([self.binaries / ("helm" if version == 4 else "helm3"), *words], env, None, timeout, check)

    def apply(self, *objects, **options):
        """Applies objects (dictionaries), or YAML (text), by server-side apply."""
        text = "\n---\n".join(one if isinstance(one, str) else json.dumps(one) for one in objects)
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=text, **options)

    def get(self, kind, name, namespace="default"):
        """An object, or None."""
        found = self.kubectl("get", kind, name, "--namespace", namespace, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else None

    def list(self, kind, namespace=None, selector=None):
        """Objects, of all namespaces unless one is named."""
        place = ["--namespace", namespace] if namespace else ["--all-namespaces"]
        return json.loads(self.kubectl("get", kind, *place, *(["--selector", selector] if selector else []), "-o", "json"))["items"]

    def service_account(self, name, namespace="default", faulty=False, seconds=7200):
        """A kubeconfig with a token of a service account."""
        token = self.kubectl("create", "token", name, "--namespace", namespace, f"--duration={seconds}s").strip()
        server = self.faults.url if faulty else None
        return self.control.write_kubeconfig(f"{namespace}-{name}{'-faulty' if faulty else ''}", {"token": token}, server, namespace)

    def load_image(self, archive):
        """Puts an image on every node."""
        for node in self.nodes:
            node.load_image(archive)

    def fault(self, match=None, **action):
        """Adds a rule to the fault proxy; see `services.Faults`."""
        return self.faults.add(match, **action)

    def calls(self, start=0, **fields):
        """Calls of the API by user, verb and resource (audit log), and the offset to go on from."""
        events, end = self.control.audit(start)
        return control.count(events, **fields), end


def condition(thing, kind):
    """The status of a condition of an object."""
    found = ((thing or {}).get("status") or {}).get("conditions") or []
    return next((one["status"] for one in found if one["type"] == kind), None)


def pod(name, *arguments, image=images.TOOL, namespace="default", **spec):
    """A pod with one container that runs the laboratory's own image, allowed by the restricted pod security."""
    container = {
        "name": "main",
        "image": image,
        "args": list(arguments),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "readOnlyRootFilesystem": True},
        **spec.pop("container", {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, **spec.pop("metadata", {})},
        "spec": {
            "containers": [container],
            "terminationGracePeriodSeconds": 2,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            **spec,
        },
    }


# The command


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start one")
    up.add_argument("--nodes", type=int, default=0, help="number of real nodes; needs root")
    up.add_argument("--faults", action="store_true", help="the fault proxy in front of the API server")
    up.add_argument("--simulated", type=int, default=0, metavar="N", help="number of simulated nodes")
    up.add_argument("--policies", action="store_true", help="enforce NetworkPolicies on the nodes")
    up.add_argument("--oldest", action="store_true", help="with the oldest API server")
    up.add_argument("--hold", action="store_true", help="run until told to end")
    up.add_argument("--minutes", type=int, default=120, help="for how long at most")
    up.add_argument("words", nargs="*", metavar="COMMAND")
    enter = commands.add_parser("enter", help="run a command in one that runs")
    enter.add_argument("id", nargs="?")
    enter.add_argument("words", nargs="*", metavar="COMMAND")
    commands.add_parser("list", help="show those that run")
    down = commands.add_parser("down", help="end one")
    down.add_argument("id")
    # Everything behind "--" is the command.
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:split])
    options.words = words[split + 1 :]
    return options


def find(name):
    """Folder and description of a laboratory that runs."""
    found = {folder: known for folder, known in isolation.running().items() if "environment" in known and (not name or folder.name.endswith(name))}
    if len(found) != 1:
        raise Failure(f"{len(found)} laboratories run{' with this name' if name else ''}; see lab.py list")
    return next(iter(found.items()))


def up(options):
    """Starts a laboratory, and a command in it."""
    isolation.enter(tied=not options.hold, limit=options.minutes * 60)
    terminate_on_signals()
    extra = {"api_binaries": control.oldest() or sys.exit("the oldest API server is not built: tests/kubernetes/build oldest")} if options.oldest else {}
    with Lab(options.nodes, options.faults, bool(options.simulated), options.policies, **extra) as lab:
        if options.simulated:
            lab.apply(*lab.simulated.nodes(options.simulated))
        took = ", ".join(f"{name} after {seconds:.1f} s" for name, seconds in lab.times.items())
        base = pathlib.Path(os.environ[isolation.INSIDE])
        name = base.name.removeprefix(isolation.PREFIX)
        print(f"laboratory {name}: {took}; logs in {lab.control.logs}", file=sys.stderr, flush=True)
        if not options.words and not options.hold:
            options.words = [os.environ.get("SHELL", "bash")]
        known = {**json.loads((base / "outer.json").read_text()), "environment": lab.environment, "isolated": lab.isolated}
        (base / "outer.json").write_text(json.dumps(known))
        if options.words:
            code = subprocess.run(options.words, env={**os.environ, **lab.environment}, check=False).returncode
            if not options.hold:
                return code
        print(f"KUBECONFIG={lab.kubeconfig}; {pathlib.Path(__file__).name} enter {name} -- kubectl get nodes", file=sys.stderr, flush=True)
        while True:
            lab.control.check()
            time.sleep(1)


def enter(options):
    """Runs a command in a laboratory that runs."""
    _, known = find(options.id)
    os.environ.update(known["environment"])
    words = options.words or [os.environ.get("SHELL", "bash")]
    if known["isolated"]:
        # The child of unshare is the first process of the namespaces.
        children = [pathlib.Path(f"/proc/{known['outer']}/task/{known['outer']}/children").read_text().split()[0]]
        children += pathlib.Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split()
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        words = ["nsenter", "--target", children[1], "--net", "--mount", "--pid", "--ipc", "--uts", *user, f"--wdns={os.getcwd()}", "--", *words]
    os.execvp(words[0], words)


def main():
    options = arguments()
    if options.command == "up":
        return up(options)
    if options.command == "enter":
        return enter(options)
    if options.command == "list":
        for folder, known in isolation.running().items():
            print(folder.name.removeprefix(isolation.PREFIX), " ".join(known.get("command", [])))
        return 0
    folder, known = find(options.id)
    with contextlib.suppress(ProcessLookupError):
        os.kill(known["outer"], 15)
    until(lambda: not folder.exists(), 30, "the laboratory has ended")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"lab.py: {failure}")
