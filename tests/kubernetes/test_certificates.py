"""The certificates that the chart's job makes, tried out by a coordinator, a worker and rugctl. Needs Helm and binaries, and no cluster: the API
server that the job writes to is a stand-in that knows secrets alone."""

import base64
import http.server
import json
import os
import pathlib
import re
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

from charts import ROOT, helm_of, named, render

BINARIES = pathlib.Path(os.environ.get("RUG_TEST_BIN_DIR") or ROOT / "target/debug")


class Secrets(http.server.BaseHTTPRequestHandler):
    """Reads and patches secrets, each of which is there and empty at first."""

    held = {}

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def secret(self):
        name = self.path.split("?")[0].rsplit("/", 1)[1]
        empty = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "rug", "resourceVersion": "1"}}
        return self.held.setdefault(name, empty)

    def do_GET(self):
        self.answer(200, self.secret())

    def do_PATCH(self):
        patch, secret = json.loads(self.rfile.read(int(self.headers["content-length"]))), self.secret()
        if patch["metadata"]["resourceVersion"] != secret["metadata"]["resourceVersion"]:
            return self.answer(409, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict", "message": "changed"})
        data = {**secret.get("data", {}), **patch["data"]}
        secret["data"] = {key: value for key, value in data.items() if value is not None}
        secret["metadata"]["resourceVersion"] = str(int(secret["metadata"]["resourceVersion"]) + 1)
        return self.answer(200, secret)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@unittest.skipUnless(helm_of() and (BINARIES / "rug-pod").exists(), f"needs Helm, and binaries in {BINARIES}")
class Certificates(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        Secrets.held = {}
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Secrets)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
        context = {"cluster": "c", "user": "u", "namespace": "rug"}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": context}], "users": [{"name": "u", "user": {}}],
        }
        (self.folder / "kubeconfig").write_text(json.dumps(config))
        self.objects = render(overrides={"worker.config.drivers": ["simulated"]})
        (self.folder / "plan.json").write_text(named(self.objects, "ConfigMap", "rug-certificates")["data"]["plan.json"])

    def run_job(self):
        """What the job says that it did."""
        environment = {"KUBECONFIG": str(self.folder / "kubeconfig"), "PATH": os.environ["PATH"]}
        command = [BINARIES / "rug-pod", "certificates", "--plan", self.folder / "plan.json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stderr

    def mount(self, part):
        """The files of a secret, as a pod sees them."""
        folder = self.folder / f"tls-{part}"
        folder.mkdir(exist_ok=True)
        for key in ("ca.crt", "tls.crt", "tls.key"):
            file = folder / key
            file.unlink(missing_ok=True)
            file.write_bytes(base64.b64decode(Secrets.held[f"rug-{part}-tls"]["data"][key]))
            file.chmod(0o400)
        return folder

    def start(self, part, ports):
        """A program with the settings of the chart, at other places."""
        text = named(self.objects, "ConfigMap", f"rug-{part}")["data"][f"{part}.toml"]
        for here, there in {
            "0.0.0.0:7470": f"127.0.0.1:{ports['api']}", "0.0.0.0:9464": f"127.0.0.1:{ports[part]}", "/var/lib/rug/state": str(self.folder / part),
            "/etc/rug/tls": str(self.mount(part)),
        }.items():
            self.assertIn(here, text + "0.0.0.0:7470")
            text = text.replace(here, there)
        text = re.sub(r"https://rug-coordinator-0\.[a-z.-]+:7470", f"https://127.0.0.1:{ports['api']}", text)
        (self.folder / f"{part}.toml").write_text(text)
        log = open(self.folder / f"{part}.log", "w")
        self.addCleanup(log.close)
        environment = {"PATH": os.environ["PATH"], f"RUG_{part.upper()}_NAME": f"rug-{part}-0", "RUG_REVISION": "r1"}
        program = subprocess.Popen([BINARIES / f"rug-{part}", "run", "--config", self.folder / f"{part}.toml"], env=environment, stderr=log)
        self.addCleanup(program.wait)
        self.addCleanup(program.terminate)

    def ready(self, port, seconds=30):
        """Waits until `/readyz` says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=3) as answer:
                    return json.loads(answer.read())
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.fail("\n".join(log.read_text() for log in self.folder.glob("*.log")))

    def rugctl(self, *words, given=None):
        folder = self.mount("admin")
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "RUG_SERVER": f"https://localhost:{self.ports['api']}",
            "RUG_TLS_CA": f"{folder}/ca.crt", "RUG_TLS_CERT": f"{folder}/tls.crt", "RUG_TLS_KEY": f"{folder}/tls.key",
        }
        done = subprocess.run([BINARIES / "rugctl", *words], env=environment, input=given, capture_output=True, text=True, timeout=90)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_a_cluster_runs_with_them_and_goes_on_when_they_are_renewed(self):
        made = self.run_job()
        self.assertEqual(re.findall(r"(\S+): made", made), ["rug-ca", "rug-coordinator-tls", "rug-worker-tls", "rug-admin-tls"])
        self.assertEqual(self.run_job(), "nothing is to be renewed\n")
        self.ports = {"api": free_port(), "coordinator": free_port(), "worker": free_port()}
        self.start("coordinator", self.ports)
        self.assertEqual(self.ready(self.ports["coordinator"])["revision"], "r1")
        self.start("worker", self.ports)
        self.ready(self.ports["worker"])
        self.assertIn("nothing is wrong", self.rugctl("doctor"))
        document = "name: a\nkind: custom\ndriver: simulated\nprobe_interval: 1s\nspec: {command: none}\n"
        self.rugctl("apply", "-f", "-", given=document)

        # Everything anew, the CA as well: programs see it by themselves.
        for secret in Secrets.held.values():
            secret["data"] = {}
        self.run_job()
        for part in ("coordinator", "worker"):
            self.mount(part)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.rugctl("delete", "a", "--yes", "--ignore-missing", "--timeout", "5s")
                self.assertIn("nothing is wrong", self.rugctl("doctor", "--timeout", "5s"))
                return
            except AssertionError:
                time.sleep(1)
        self.rugctl("doctor")


if __name__ == "__main__":
    unittest.main()
