"""Metrics for autoscalers: metrics-server for CPU and memory, and a stand-in of an adapter for what pods export.

The adapter answers `custom.metrics.k8s.io/v1beta2` for pods, as the adapter of Prometheus would: it reads the pods' own endpoints at the moment
it is asked. The API server calls it by way of an APIService, like any other.
"""

import datetime
import http.server
import json
import re
import ssl
import threading
import urllib.parse
import urllib.request

from control import GATEWAY
from processes import Process, free_ports
from services import endpoint

GROUP = "custom.metrics.k8s.io"
POD_METRIC = re.compile(r"^/apis/custom\.metrics\.k8s\.io/v1beta2/namespaces/([^/]+)/pods/([^/]+)/([^/?]+)")


def api_service(group, version, service):
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "service": {"name": service, "namespace": "kube-system", "port": 443},
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }


def service(name):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"ports": [{"name": "https", "port": 443, "protocol": "TCP"}]},
    }


def bind(role, user, name):
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [user],
    }


def values(text, metric):
    """The sum of all series of a metric in a page of Prometheus' text format; None where there is no such metric."""
    found = [line.rsplit(" ", 1)[1] for line in text.splitlines() if re.match(rf"{re.escape(metric)}(\{{.*\}})? ", line)]
    return sum(map(float, found)) if found else None


class Adapter:
    """The stand-in. `port` and `path` are where pods export, with `scheme` http or https (not verified)."""

    def __init__(self, lab, port, path="/metrics", scheme="http"):
        self.lab, self.exported = lab, (scheme, port, path)
        self.port = free_ports(1)[0]
        adapter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                adapter.answer(self)

            def log_message(self, *_):
                pass

        certificate, key = lab.control.authority.issue("metrics-adapter", "metrics-adapter", names=[GATEWAY])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server = http.server.ThreadingHTTPServer((GATEWAY, self.port), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def start(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        controller = {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "custom-metrics-reader"},
            "rules": [{"apiGroups": [GROUP], "resources": ["*"], "verbs": ["get", "list"]}],
        }
        self.lab.apply(
            role,
            bind("custom-metrics-reader", controller, "hpa-custom-metrics"),
            service("metrics-adapter"),
            endpoint("metrics-adapter", "kube-system", GATEWAY, self.port, "https"),
            api_service(GROUP, "v1beta2", "metrics-adapter"),
        )
        return self

    def stop(self):
        self.server.shutdown()

    def read(self, address, metric):
        """What one pod exports."""
        scheme, port, path = self.exported
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(f"{scheme}://{address}:{port}{path}", timeout=2, context=context if scheme == "https" else None) as page:
            return values(page.read().decode(), metric)

    def answer(self, request):
        """Answers one request of the API server."""
        path = urllib.parse.urlsplit(request.path)
        found = POD_METRIC.match(urllib.parse.unquote(path.path))
        if found is None:
            content = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/v1beta2", "resources": []}
        else:
            content = self.metric(*found.groups(), urllib.parse.parse_qs(path.query).get("labelSelector", [None])[0])
        data = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def metric(self, namespace, name, metric, selector):
        """A metric of pods: all that a selector chooses, or one by name."""
        items, now = [], datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        for pod in self.lab.list("pods", namespace, selector):
            address = pod["status"].get("podIP")
            if not address or name not in ("*", pod["metadata"]["name"]):
                continue
            try:
                value = self.read(address, metric)
            except OSError:
                value = None
            if value is not None:
                described = {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "apiVersion": "/v1"}
                items.append({"describedObject": described, "metric": {"name": metric}, "timestamp": now, "value": f"{int(value * 1000)}m"})
        return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/v1beta2", "metadata": {}, "items": items}


class Server:
    """metrics-server as a process of the laboratory; `kubectl top` and autoscalers by CPU work with it."""

    def __init__(self, lab):
        self.lab = lab
        self.port = free_ports(1)[0]
        kubeconfig = lab.control.client_kubeconfig("metrics-server", "lab-metrics-server", ["system:masters"])
        command = [
            lab.binaries / "metrics-server",
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--secure-port={self.port}",
            f"--cert-dir={lab.control.folder / 'metrics-server'}",
            "--kubelet-insecure-tls",
            "--kubelet-preferred-address-types=InternalIP",
            "--metric-resolution=10s",
            "--kubelet-request-timeout=5s",
        ]
        self.process = Process("metrics-server", command, lab.control.logs / "metrics-server.log")

    def start(self):
        self.process.start()
        self.lab.processes.append(self.process)
        self.lab.apply(
            service("metrics-server"),
            endpoint("metrics-server", "kube-system", GATEWAY, self.port, "https"),
            api_service("metrics.k8s.io", "v1beta1", "metrics-server"),
        )
        return self
