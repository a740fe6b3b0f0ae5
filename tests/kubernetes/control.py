"""The control plane: etcd, API server, controller manager, scheduler, and what clients need to talk to it."""

import collections
import json
import os
import pathlib
import ssl
import urllib.request

from certificates import Authority, openssl
from processes import Ended, Process, free_ports, run, until

# The network of a laboratory. It is the same in all of them, as each has a network namespace.
GATEWAY = "10.80.0.1"
SERVICES = "10.96.0.0/16"
API_SERVICE, DNS_SERVICE = "10.96.0.1", "10.96.0.10"
PODS = "10.81.0.0/16"
ADMIN_TOKEN = "lab-admin"
LIMITS = {"kube-api-qps": 500, "kube-api-burst": 1000}

AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version"]}, {"level": "Metadata"}],
}


def start_arguments(flags):
    """Flags as words; a list is a flag that is given several times."""
    words = []
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            words.append(f"--{name}={str(one).lower() if isinstance(one, bool) else one}")
    return words


class ControlPlane:
    """Processes, certificates and kubeconfigs of one control plane below `folder`.

    `options`: `api`, `controllers` and `scheduler` are further flags for each program; `binaries` is the folder of programs, and `api_binaries`
    that of the API server where it is an older one.
    """

    def __init__(self, folder, binaries, isolated, options=None):
        self.folder, self.binaries, self.isolated = pathlib.Path(folder), pathlib.Path(binaries), isolated
        self.options = options or {}
        self.address = GATEWAY if isolated else "127.0.0.1"
        ports = free_ports(6)
        self.etcd_port, self.peer_port, self.manager_port, self.scheduler_port = ports[:4]
        self.api_port = 6443 if isolated else ports[4]
        self.url = f"https://{self.address}:{self.api_port}"
        self.logs = self.folder / "logs"
        self.processes = {}
        # In front of the API server for everything in the cluster, when it runs.
        self.front = None

    def start(self):
        """Starts all of it and waits until it is ready."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.issue()
        self.start_etcd()
        self.start_api()
        self.start_managers()
        self.wait()
        return self

    def issue(self):
        """Certificates, tokens and kubeconfigs."""
        folder = self.folder / "pki"
        self.authority = Authority(folder, "ca")
        self.requests = Authority(folder, "front-proxy-ca")
        service_names = [f"kubernetes{end}" for end in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
        self.names = [*service_names, "localhost", "127.0.0.1", API_SERVICE, GATEWAY]
        self.authority.issue("apiserver", "kube-apiserver", names=self.names)
        self.authority.issue("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        self.requests.issue("front-proxy-client", "front-proxy-client")
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", folder / "sa.key")
        openssl("pkey", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
        (folder / "tokens").write_text(f'{ADMIN_TOKEN},lab-admin,lab-admin,"system:masters"\n')
        (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT))
        self.kubeconfig = self.write_kubeconfig("admin", {"token": ADMIN_TOKEN})
        for name, user in (("controller-manager", "system:kube-controller-manager"), ("scheduler", "system:kube-scheduler"), ("proxy", "system:kube-proxy")):
            self.client_kubeconfig(name, user)

    def client_kubeconfig(self, name, user, groups=()):
        """A kubeconfig with a client certificate."""
        certificate, key = self.authority.issue(name, user, groups)
        return self.write_kubeconfig(name, {"client-certificate": str(certificate), "client-key": str(key)})

    def write_kubeconfig(self, name, user, server=None, namespace="default"):
        """Writes a kubeconfig that needs no other file; it is JSON, which is YAML as well."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": server or self.url, "certificate-authority": str(self.authority.certificate)}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name, "namespace": namespace}}],
            "current-context": "lab",
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(content))
        return path

    def process(self, name, command):
        self.processes[name] = Process(name, command, self.logs / f"{name}.log").start()

    def start_etcd(self):
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.peer_port}"
        flags = {
            "name": "lab",
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"lab={peer}",
            # The machine does not lose power in a test.
            "unsafe-no-fsync": True,
            "log-level": "warn",
        }
        self.process("etcd", [self.binaries / "etcd", *start_arguments(flags)])

    def start_api(self):
        """Starts the API server, also once more after it was stopped."""
        pki = self.folder / "pki"
        issuer = "https://kubernetes.default.svc.cluster.local"
        flags = {
            "etcd-servers": f"http://127.0.0.1:{self.etcd_port}",
            "bind-address": "0.0.0.0" if self.isolated else "127.0.0.1",
            # An address that is no loopback address is wanted, although clients here come over the loopback address.
            "advertise-address": self.address if self.isolated else "192.0.2.1",
            "secure-port": self.api_port,
            # The laboratory makes this endpoint itself: it may lead to the fault proxy.
            "endpoint-reconciler-type": "none",
            "service-cluster-ip-range": SERVICES,
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "client-ca-file": pki / "ca.crt",
            "kubelet-client-certificate": pki / "kubelet-client.crt",
            "kubelet-client-key": pki / "kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP",
            "proxy-client-cert-file": pki / "front-proxy-client.crt",
            "proxy-client-key-file": pki / "front-proxy-client.key",
            "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "enable-aggregator-routing": True,
            "service-account-issuer": issuer,
            "service-account-key-file": pki / "sa.pub",
            "service-account-signing-key-file": pki / "sa.key",
            "token-auth-file": pki / "tokens",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": True,
            "audit-policy-file": self.folder / "audit-policy.json",
            "audit-log-path": self.folder / "audit.log",
            "audit-log-mode": "batch",
            "audit-log-batch-max-wait": "500ms",
            "shutdown-delay-duration": "0s",
            "profiling": False,
            **self.options.get("api", {}),
        }
        program = pathlib.Path(self.options.get("api_binaries", self.binaries)) / "kube-apiserver"
        self.process("kube-apiserver", [program, *start_arguments(flags)])

    def start_managers(self):
        """Starts controller manager and scheduler."""
        pki = self.folder / "pki"
        flags = {
            "kubeconfig": self.folder / "controller-manager.kubeconfig",
            "bind-address": "127.0.0.1",
            "secure-port": self.manager_port,
            "leader-elect": False,
            "use-service-account-credentials": True,
            "service-account-private-key-file": pki / "sa.key",
            "root-ca-file": pki / "ca.crt",
            "cluster-signing-cert-file": pki / "ca.crt",
            "cluster-signing-key-file": pki / "ca.key",
            "allocate-node-cidrs": False,
            # A test does not wait five minutes for what it can see in twenty seconds.
            "node-monitor-period": "2s",
            "node-monitor-grace-period": "16s",
            "horizontal-pod-autoscaler-sync-period": "5s",
            # Thousands of pods are not to wait for the limits of their controllers.
            **LIMITS,
            **self.options.get("controllers", {}),
        }
        self.process("kube-controller-manager", [self.binaries / "kube-controller-manager", *start_arguments(flags)])
        flags = {
            "kubeconfig": self.folder / "scheduler.kubeconfig",
            "bind-address": "127.0.0.1",
            "secure-port": self.scheduler_port,
            "leader-elect": False,
            **LIMITS,
            **self.options.get("scheduler", {}),
        }
        self.process("kube-scheduler", [self.binaries / "kube-scheduler", *start_arguments(flags)])

    def request(self, path, timeout=10):
        """Asks the API server as the administrator."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            return answer.read()

    def wait(self):
        """Waits until the API server is ready and the controllers have made a service account."""

        def ready():
            self.check()
            return self.request("/readyz") == b"ok" and self.request("/api/v1/namespaces/default/serviceaccounts/default")

        until(ready, 120, "the API server is ready")

    def check(self):
        """Raises when a process has ended that should run."""
        for name, process in self.processes.items():
            if process.child is not None and not process.runs():
                lines = "\n".join(process.lines()[-15:])
                raise Ended(f"{name} has ended:\n{lines}")

    def stop_api(self, grace=20):
        """Stops the API server; `start_api` starts it again."""
        self.processes.pop("kube-apiserver").stop(grace)

    def kill_api(self):
        """Kills the API server; `start_api` starts it again."""
        self.processes.pop("kube-apiserver").kill()

    def stop(self):
        """Ends everything; nothing of it is kept, so that there is no need to be gentle."""
        for process in self.processes.values():
            process.kill()

    def audit(self, start=0):
        """Events of the audit log from an offset on, and the offset of its end."""
        events = []
        try:
            with open(self.folder / "audit.log", "rb") as log:
                log.seek(start)
                for line in log:
                    # The last line may be half written.
                    if not line.endswith(b"\n"):
                        break
                    start += len(line)
                    events.append(json.loads(line))
        except FileNotFoundError:
            pass
        return events, start


def count(events, user=None, verb=None, resource=None):
    """Counts events of the audit log by user, verb and resource, of those that match; users match by a part of their name."""
    counts = collections.Counter()
    for event in events:
        if event["stage"] not in ("ResponseComplete", "Panic") and event["verb"] != "watch" or event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            continue
        reference = event.get("objectRef", {})
        name = event["user"].get("username", "")
        kind = reference.get("resource", event.get("requestURI", "")) + (f"/{reference['subresource']}" if "subresource" in reference else "")
        if (user is None or user in name) and verb in (None, event["verb"]) and resource in (None, kind):
            counts[name, event["verb"], kind] += 1
    return counts


def where(binaries=None):
    """The folder of programs: what is asked for, what RUG_LAB_BIN says, or the cache."""
    if binaries or os.environ.get("RUG_LAB_BIN"):
        return pathlib.Path(binaries or os.environ["RUG_LAB_BIN"])
    return pathlib.Path(run([pathlib.Path(__file__).parent / "build", "--where"]).strip())


def oldest():
    """The folder of the oldest API server, or None where it is not built."""
    folder = pathlib.Path(run([pathlib.Path(__file__).parent / "build", "--where", "oldest"]).strip())
    return folder if (folder / "kube-apiserver").exists() else None
