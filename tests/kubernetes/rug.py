"""Rug in the laboratory: its image, its chart, and its operator's command line."""

import base64
import dataclasses
import json
import os
import pathlib
import subprocess
import threading
import time

import images
from processes import Failure, Process, run, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("RUG_TEST_BIN_DIR", ROOT / "target/debug"))


def image():
    """The archive of the image; `make image WITH=archive` makes it."""
    return pathlib.Path(os.environ.get("RUG_IMAGE") or ROOT / "target/image/rug.tar")


def appliance(name, **fields):
    """A document of an appliance that listens at a port, made of the laboratory's own image."""
    return {
        "name": name,
        "kind": "custom",
        "driver": "kubernetes",
        "image": images.TOOL,
        "probe_interval": "1s",
        "spec": {"command": "/tool", "args": ["serve", "8080"], "port": 8080, "probe": "tcp"},
        **fields,
    }


def small(lab):
    """A file of values for small machines: what a laboratory of a few nodes on two cores can give."""
    values = pathlib.Path(lab.folder) / "small.yaml"
    requests = {"requests": {"cpu": "10m", "memory": "32Mi"}}
    values.write_text(
        json.dumps(
            {
                "image": {"registry": "localhost", "repository": "rug"},
                "coordinator": {"resources": requests, "priorityClassName": "", "podAntiAffinity": "soft"},
                "worker": {"resources": requests, "config": {"session": {"drain_timeout": "20s"}}},
            }
        )
    )
    return values


def patient(condition):
    """The condition, for which a call that failed counts as not yet, whatever failed."""

    def tried():
        try:
            return condition()
        except (subprocess.SubprocessError, ValueError, KeyError) as error:
            raise Failure(f"{type(error).__name__}: {error}") from error

    tried.__doc__ = condition.__doc__
    return tried


@dataclasses.dataclass
class Seen:
    """An appliance as a list shows it."""

    phase: str
    owner: str


class Client:
    """rugctl as an administrator, through the Service, with the certificate that the chart made."""

    def __init__(self, lab, namespace, release="rug"):
        self.lab, self.namespace = lab, namespace
        service = lab.get("service", f"{release}-coordinator", namespace)
        self.server = f"https://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"
        self.folder = pathlib.Path(lab.folder) / f"admin-{namespace}"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.host = f"{release}-coordinator.{namespace}.svc.cluster.local"
        self.release = release

    def _certificates(self):
        secrets = self.lab.list("secrets", self.namespace)
        name = next(one["metadata"]["name"] for one in secrets if one["metadata"]["name"].startswith(self.release) and "admin" in one["metadata"]["name"])
        for key, value in self.lab.get("secret", name, self.namespace)["data"].items():
            path = self.folder / key
            path.write_bytes(base64.b64decode(value))
            path.chmod(0o600)

    def __call__(self, *words, given=None, check=True, timeout=240):
        self._certificates()
        env = {
            "RUG_SERVER": self.server,
            "RUG_TLS_CA": str(self.folder / "ca.crt"),
            "RUG_TLS_CERT": str(self.folder / "tls.crt"),
            "RUG_TLS_KEY": str(self.folder / "tls.key"),
            "RUG_TLS_SERVER_NAME": self.host,
            "NO_COLOR": "1",
        }
        return run([BINARIES / "rugctl", *words], env, given, timeout, check)

    def json(self, *words):
        return json.loads(self(*words, "-o", "json"))

    def list(self):
        """Appliances by name."""
        return seen(self.json("list"))

    def leader(self):
        """Name of the coordinator that leads."""
        return self.json("cluster", "status")["coordinator"]


class Unowned:
    """Watches, beside what a test does, for how long appliances have no owner; with half a second of precision."""

    def __init__(self, client):
        self.client, self.seen, self.since = client, {}, {}
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join(60)

    def _watch(self):
        while not self.stopped.wait(0.5):
            try:
                found = self.client.list()
            except (Failure, subprocess.SubprocessError, ValueError):
                continue
            now = time.monotonic()
            for name, one in found.items():
                if one.owner:
                    begun = self.since.pop(name, None)
                    if begun:
                        self.seen[name] = max(self.seen.get(name, 0), now - begun)
                else:
                    self.since.setdefault(name, now)

    def longest(self):
        """In seconds."""
        return max([0, *self.seen.values(), *(time.monotonic() - begun for begun in self.since.values())])


def rights(namespace, account):
    """A service account with what docs/kubernetes-driver.md says that workers need, and no more."""
    rules = [
        ("coordination.k8s.io", "leases", ["get", "create", "update", "delete"]),
        ("", "pods", ["get", "list", "watch", "create", "patch", "delete"]),
        ("", "pods/status", ["patch"]),
        ("", "pods/log", ["get"]),
        ("", "services", ["get", "create", "patch", "delete"]),
        ("", "secrets", ["get", "create", "delete"]),
    ]
    meta = {"name": account, "namespace": namespace}
    api = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": f"{api}/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs in rules],
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
    ]


def simulated_settings():
    """Settings of the driver for simulated nodes."""
    return 'namespace = "default"\ntolerations = [{key = "simulated", operator = "Exists"}]\nclient = {qps = 200, burst = 400}\n'


class Fleet:
    """A coordinator and workers of this side, as processes: for tests that need to stop and to kill them."""

    def __init__(self, lab, workers, kubeconfig, settings):
        self.lab, self.root = lab, pathlib.Path(lab.folder) / "rug"
        self.root.mkdir()
        self.socket = f"unix:{self.root}/coordinator.sock"
        words = ["run", "--name", "coordinator-1", "--listen", self.socket, "--state-dir", self.root / "coordinator"]
        self.processes = {"coordinator-1": self._process("coordinator-1", "rug-coordinator", words)}
        (self.root / "worker.toml").write_text(f'[kubernetes]\n{settings.replace("client = {", f"client = {{kubeconfig = {json.dumps(str(kubeconfig))}, ")}')
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            words = ["run", "--config", self.root / "worker.toml", "--name", name, "--coordinator", self.socket, "--driver", "kubernetes"]
            words += ["--state-dir", self.root / name]
            self.processes[name] = self._process(name, "rug-worker", words)

    def _process(self, name, program, words):
        # Its log is among those of the laboratory, whose ends are shown when a test fails.
        return Process(name, [BINARIES / program, *words], self.lab.control.logs / f"{name}.log")

    def start(self):
        for process in self.processes.values():
            process.start()
        self.healthy(len(self.processes) - 1)

    def stop(self):
        for process in self.processes.values():
            process.kill()

    def signal(self, name, number):
        os.kill(self.processes[name].child.pid, number)

    def ctl(self, *words, given=None, check=True, timeout=240):
        return run([BINARIES / "rugctl", *words], {"RUG_SERVER": self.socket, "NO_COLOR": "1"}, given, timeout, check)

    def apply(self, documents, wait=True):
        text = "\n---\n".join(json.dumps(one) for one in documents)
        self.ctl("apply", "-f", "-", "--yes", *([] if wait else ["--no-wait"]), given=text, timeout=600)

    def rebuild(self, names):
        """Has instances replaced, and does not wait for it."""
        for name in names:
            self.ctl("rebuild", name, "--no-wait", check=False)

    def list(self):
        return seen(json.loads(self.ctl("list", "-o", "json")))

    def error(self, name):
        """What is wrong with an appliance, as its status says."""
        return json.loads(self.ctl("get", name, "-o", "json"))["status"].get("last_error")

    def healthy(self, workers, seconds=60):
        def found():
            counts = json.loads(self.ctl("cluster", "status", "-o", "json"))["workers"]
            return counts.get("healthy", 0) >= workers

        until(patient(found), seconds, f"{workers} workers are healthy")

    def settled(self, number, seconds):
        """Waits until so many appliances are configured."""

        def found():
            phases = json.loads(self.ctl("cluster", "status", "-o", "json"))["phases"]
            configured = sum(n for phase, n in phases.items() if phase.lower() == "configured")
            if configured != number or sum(phases.values()) != number:
                raise Failure(f"{phases}")
            return True

        until(found, seconds, f"{number} appliances are configured", every=1)


def seen(found):
    """Appliances of a list, by name."""
    found = found.get("appliances", found) if isinstance(found, dict) else found
    status = {one["name"]: one.get("status") or {} for one in found}
    return {name: Seen(one.get("phase", ""), (one.get("assignment") or {}).get("worker", "")) for name, one in status.items()}
