"""What a cluster has beside its control plane: names, addresses of Services on this side of the nodes, the fault proxy, nodes that are simulated."""

import json
import urllib.request

from control import ADMIN_TOKEN, DNS_SERVICE, GATEWAY
from processes import Ended, Process, free_ports, run, until

COREFILE = """
cluster.local:53 in-addr.arpa:53 {
  errors
  ready @ADDRESS@:8181
  cache 2
  kubernetes cluster.local in-addr.arpa {
    kubeconfig @KUBECONFIG@
    pods insecure
    ttl 2
  }
}
"""


def endpoint(service, namespace, address, port, name, protocol="TCP"):
    """An endpoint of a Service that stands for a process of the laboratory."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": name, "port": port, "protocol": protocol}, *([{"name": "dns-tcp", "port": port, "protocol": "TCP"}] if protocol == "UDP" else [])],
    }


def dns_objects():
    """The Service of the names, where clients expect it, and what CoreDNS may read."""
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
    }
    return [service, endpoint("kube-dns", "kube-system", GATEWAY, 53, "dns", "UDP")]


class Names:
    """CoreDNS as a process of the laboratory, behind the Service kube-dns."""

    def __init__(self, control):
        corefile = control.folder / "Corefile"
        corefile.write_text(COREFILE.replace("@ADDRESS@", GATEWAY).replace("@KUBECONFIG@", str(control.kubeconfig)))
        self.process = Process("coredns", [control.binaries / "coredns", "-conf", corefile], control.logs / "coredns.log")

    def start(self):
        self.process.start()

    def wait(self):
        def ready():
            with urllib.request.urlopen(f"http://{GATEWAY}:8181/ready", timeout=2) as answer:
                return answer.status == 200

            if not self.process.runs():
                raise Ended("CoreDNS has ended:\n" + "\n".join(self.process.lines()[-5:]))
            with urllib.request.urlopen(f"http://{GATEWAY}:8181/ready", timeout=2) as answer:
                return answer.status == 200

        until(ready, 60, "CoreDNS is ready")


class Faults:
    """The fault proxy in front of the API server; see go/own/faults/main.go for what it can do.

    Patterns have the keys user, agent, verb, group, resource, subresource, namespace and name; alternatives are separated by "|", and "*" at the end
    matches any rest. Verbs are get, list, watch, create, update, patch, apply, delete, deletecollection.
    """

    def __init__(self, control):
        ports = free_ports(2)
        self.control_port = ports[0]
        self.port = 6444 if control.isolated else ports[1]
        self.url = f"https://{control.address}:{self.port}"
        pki = control.folder / "pki"
        command = [
            control.binaries / "faults",
            f"-listen={control.address}:{self.port}",
            f"-control=127.0.0.1:{self.control_port}",
            f"-upstream={control.url}",
            f"-ca={pki / 'ca.crt'}",
            f"-cert={pki / 'apiserver.crt'}",
            f"-key={pki / 'apiserver.key'}",
            f"-tokens={pki / 'tokens'}",
        ]
        self.process = Process("faults", command, control.logs / "faults.log")
        self.kubeconfig = control.write_kubeconfig("faults", {"token": ADMIN_TOKEN}, self.url)

    def start(self):
        self.process.start()
        until(lambda: self.rules() is not None, 10, "the fault proxy answers")

    def call(self, method, path, content=None):
        data = json.dumps(content).encode() if content is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.control_port}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def add(self, match=None, **action):
        """Adds a rule and returns its number. Actions: delay_ms, status, retry_after, cut, hang, forward, times, share."""
        return self.call("POST", "/rules", {"match": match or {}, **action})["id"]

    def remove(self, number):
        self.call("DELETE", f"/rules/{number}")

    def clear(self):
        """Removes all rules."""
        self.call("DELETE", "/rules")

    def rules(self):
        """All rules, with how often each has been applied."""
        return self.call("GET", "/rules")

    def hits(self, number):
        return next(rule["hits"] for rule in self.rules() if rule["id"] == number)

    def cut(self, **pattern):
        """Closes the connections of open requests; returns their number."""
        return self.call("POST", "/cut", pattern)["count"]

    def expire(self, **pattern):
        """Ends watches with an error event 410; returns their number."""
        return self.call("POST", "/expire", pattern)["count"]

    def down(self):
        """Refuses all connections until `up`."""
        self.call("POST", "/down")

    def up(self):
        self.call("POST", "/up")

    def requests(self, **fields):
        """Counts of requests so far, of those whose fields are as given."""
        return [one for one in self.call("GET", "/requests") if all(one[name] == value for name, value in fields.items())]

    def forget(self):
        """Starts counting anew."""
        self.call("DELETE", "/requests")


class Simulated:
    """Nodes and pods that only look as if they ran: kwok. One process of the laboratory answers at the addresses of all pods."""

    RANGE = "10.90.0.0/16"

    def __init__(self, control):
        self.control = control
        self.port = free_ports(1)[0]
        command = [
            control.binaries / "kwok",
            f"--kubeconfig={control.kubeconfig}",
            f"--config={control.binaries / 'kwok-stages.yaml'}",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            f"--cidr={self.RANGE}",
            f"--node-ip={GATEWAY}",
            f"--server-address=127.0.0.1:{self.port}",
            "--node-lease-duration-seconds=40",
        ]
        self.process = Process("kwok", command, control.logs / "kwok.log")

    def start(self):
        if self.control.isolated:
            # Every address of the range is this machine's: whatever listens at 0.0.0.0 answers for every pod.
            run(["ip", "route", "replace", "local", self.RANGE, "dev", "lo"])
        self.process.start()

    @staticmethod
    def nodes(count, pods=110):
        """Objects of simulated nodes; a taint keeps away what does not tolerate it."""
        capacity = {"cpu": "64", "memory": "256Gi", "pods": str(pods)}
        return [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": f"simulated-{number}",
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                    "labels": {
                        "type": "simulated",
                        "kubernetes.io/hostname": f"simulated-{number}",
                        "kubernetes.io/os": "linux",
                        "topology.kubernetes.io/zone": f"zone-{number % 3 + 1}",
                    },
                },
                "spec": {"taints": [{"key": "simulated", "effect": "NoSchedule"}]},
                "status": {"capacity": capacity, "allocatable": capacity},
            }
            for number in range(1, count + 1)
        ]
