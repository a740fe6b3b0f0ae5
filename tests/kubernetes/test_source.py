"""Custom resources as a source: real coordinators and workers (driver `simulated`) against a real API server.

Folder of the programs: `RUG_TEST_BIN_DIR`, or else what was built last below `target`.
"""

import json
import os
import pathlib
import tempfile
import time

from case import Failure, LabCase, until
from processes import Process, run

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
DEFINITION = REPOSITORY / "helm/rug/crds/appliances.rug.dev.yaml"
COUNT = int(os.environ.get("RUG_LAB_RESOURCES", "500"))
RULES = [
    {"apiGroups": ["rug.dev"], "resources": ["appliances"], "verbs": ["list", "watch", "patch"]},
    {"apiGroups": ["rug.dev"], "resources": ["appliances/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]


def programs():
    """The folder of rug-coordinator, rug-worker and rugctl."""
    named = os.environ.get("RUG_TEST_BIN_DIR")
    folders = [pathlib.Path(named)] if named else [REPOSITORY / "target/release", REPOSITORY / "target/debug"]
    found = [folder for folder in folders if (folder / "rug-coordinator").exists()]
    if not found:
        raise Failure("rug-coordinator is not built: cargo build --workspace --bins, or set RUG_TEST_BIN_DIR")
    return max(found, key=lambda folder: (folder / "rug-coordinator").stat().st_mtime)


def appliance(name, /, namespace="shop", annotations=None, **spec):
    """A custom resource; its appliance runs nowhere but in memory."""
    spec = {"kind": "custom", "driver": "simulated", "probe_interval": "5s", "spec": {"command": "sleep", "probe": "process"}, **spec}
    metadata = {"name": name, "namespace": namespace, "annotations": annotations or {}}
    return {"apiVersion": "rug.dev/v1alpha1", "kind": "Appliance", "metadata": metadata, "spec": spec}


def says(resource, kind):
    """Status and reason of a condition, and whether it is about the present generation."""
    conditions = ((resource or {}).get("status") or {}).get("conditions") or []
    one = next((one for one in conditions if one["type"] == kind), None)
    fresh = one and one["observedGeneration"] == resource["metadata"]["generation"]
    return (one["status"], one["reason"]) if fresh else None


class Source(LabCase):
    """One coordinator that is killed and started again, two workers."""

    OPTIONS = {"faults": True}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        lab = cls.lab
        cls.programs = programs()
        folder = tempfile.TemporaryDirectory(prefix="rug-source-")
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        lab.apply(DEFINITION.read_text())
        lab.kubectl("wait", "--for=condition=Established", "crd/appliances.rug.dev", "--timeout=30s")
        for namespace in ("rug", "shop"):
            lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        lab.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "rug", "namespace": "rug"}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "rug-source"}, "rules": RULES},
        )
        lab.kubectl("create", "clusterrolebinding", "rug-source", "--clusterrole=rug-source", "--serviceaccount=rug:rug")
        cls.kubeconfig = lab.service_account("rug", "rug", faulty=True)
        cls.socket = f"unix:{cls.root}/coordinator.sock"
        cls.coordinator = None
        cls.lead()
        for number in (1, 2):
            words = ["run", "--name", f"w{number}", "--coordinator", cls.socket, "--state-dir", cls.root / "workers", "--driver", "simulated"]
            env = {"RUG_WORKER_SIMULATED__WORLD": f"{cls.root}/world", "RUG_WORKER_SIMULATED__BOOT_LATENCY": "20ms"}
            worker = Process(f"w{number}", [cls.programs / "rug-worker", *words], cls.root / f"w{number}.log", env).start()
            cls.addClassCleanup(worker.stop, 15)

    @classmethod
    def lead(cls):
        """Starts the coordinator, or another one in the place of one that was killed."""
        words = ["run", "--name", "c1", "--listen", cls.socket, "--state-dir", cls.root / "coordinator"]
        env = {"RUG_COORDINATOR_KUBERNETES__APPLIANCES": "true", "RUG_COORDINATOR_KUBERNETES__CLIENT__KUBECONFIG": str(cls.kubeconfig)}
        cls.coordinator = Process("c1", [cls.programs / "rug-coordinator", *words], cls.root / "c1.log", env).start()
        cls.addClassCleanup(cls.coordinator.stop, 15)

    @classmethod
    def kill_leader(cls):
        cls.coordinator.kill()
        cls.lead()

    def setUp(self):
        self.addCleanup(self.lab.faults.clear)
        self.addCleanup(self.clear)

    def clear(self):
        self.lab.kubectl("delete", "appliances", "--all", "-n", "shop", "--timeout=120s", timeout=150)

    # What tests ask

    def ctl(self, *words, check=True):
        return run([self.programs / "rugctl", "--server", self.socket, *words], check=check)

    def resources(self):
        return {one["metadata"]["name"]: one for one in self.lab.list("appliances", "shop")}

    def appliances(self):
        """Those that Rug has in the tenant, by name."""
        listed = json.loads(self.ctl("list", "--tenant", "shop", "-o", "json"))
        return {one["name"]: one for one in listed}

    def audited(self, action):
        """How often something was done, by which resource."""
        counts = {}
        for event in json.loads(self.ctl("audit", "--action", action, "-o", "json", "--limit", "100000")):
            counts[event["actor"]] = counts.get(event["actor"], 0) + 1
        return counts

    def ready(self, name, seconds=60):
        until(lambda: says(self.lab.get("appliance", name, "shop"), "Ready") == ("True", "Configured"), seconds, f"{name} is ready")

    # Tests

    def test_columns_scale_wait_and_events_are_there_for_people(self):
        self.lab.apply(appliance("web", replicas=2))
        self.lab.kubectl("wait", "--for=condition=Ready", "appliance/web", "-n", "shop", "--timeout=60s", timeout=70)
        header, line = self.lab.kubectl("get", "rapp", "-n", "shop").splitlines()
        self.assertEqual(header.split(), ["NAME", "TENANT", "KIND", "PHASE", "READY", "WORKER", "AGE"])
        self.assertRegex(line, r"^web +custom +Configured +True +w[12] +")
        self.assertIn("web", self.lab.kubectl("get", "rug", "-n", "shop"))
        self.lab.kubectl("scale", "appliance/web", "-n", "shop", "--replicas=3")
        until(lambda: self.lab.get("appliance", "web", "shop")["status"].get("ready") == 3, 30, "three instances")
        self.assertEqual(self.appliances()["web"]["managed_by"], "kubernetes/shop/web")
        refused = self.ctl("delete", "shop/web", "--yes", check=False)
        self.assertIn("managed by `kubernetes/shop/web`", refused.stderr)

    def test_the_schema_and_its_rules_are_enforced(self):
        for wrong, text in [
            (appliance("bad", replicas=17), "should be less than or equal to 16"),
            (appliance("bad", kind="router"), "Unsupported value"),
            (appliance("bad", spec={"probe": "tcp"}), "kind custom needs spec.command"),
            (appliance("bad", labels={"a": 1}), "must be of type string"),
            (appliance("a" * 64), "at most 63 characters"),
        ]:
            with self.assertRaisesRegex(Failure, text):
                self.lab.kubectl("apply", "-f", "-", given=json.dumps(wrong))
        strict = json.dumps(appliance("bad", replica=2))
        with self.assertRaisesRegex(Failure, 'unknown field "spec.replica"'):
            self.lab.kubectl("create", "--validate=strict", "-f", "-", given=strict)
        example = REPOSITORY / "docs/examples/kubernetes/appliance.yaml"
        self.lab.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", given=example.read_text())
        self.lab.apply(appliance("web"))
        with self.assertRaisesRegex(Failure, "driver cannot change"):
            self.lab.apply(appliance("web", driver="process"))

    def test_refusals_are_conditions_and_events(self):
        self.lab.apply(appliance("web", tenant="bank"))
        until(lambda: says(self.lab.get("appliance", "web", "shop"), "Accepted") == ("False", "Invalid"), 30, "it is refused")
        found = until(lambda: [one for one in self.lab.list("events", "shop") if one["involvedObject"]["name"] == "web"], 20, "an event")
        self.assertEqual([(one["type"], one["reason"]) for one in found], [("Warning", "Invalid")])
        self.assertIn("spec.tenant", found[0]["message"])
        self.lab.kubectl("delete", "appliance", "web", "-n", "shop", "--timeout=20s")
        self.lab.apply(appliance("one"), appliance("two", name="one"))
        until(lambda: says(self.lab.get("appliance", "two", "shop"), "Accepted") is not None, 30, "the second was looked at")
        verdicts = sorted(str(says(self.lab.get("appliance", name, "shop"), "Accepted")) for name in ("one", "two"))
        self.assertEqual(verdicts, ["('False', 'Conflict')", "('True', 'Accepted')"])

    def test_an_api_server_that_fails_and_returns_loses_nothing(self):
        for status, match in [(409, {"verb": "patch|apply", "resource": "appliances"}), (500, {"verb": "patch|apply", "resource": "appliances"})]:
            self.lab.fault(match, status=status, times=5)
        self.lab.fault({"resource": "appliances"}, status=429, retry_after=1, times=5)
        self.lab.apply(*[appliance(f"web-{n}") for n in range(20)])
        self.lab.faults.expire(resource="appliances")
        self.lab.control.kill_api()
        self.lab.control.start_api()
        self.lab.control.wait()
        self.lab.apply(*[appliance(f"web-{n}", replicas=2) for n in range(20)])
        for n in range(20):
            self.ready(f"web-{n}", 90)
        self.assertEqual({one["replicas"] for one in self.appliances().values()}, {2})

    def test_500_resources_are_as_declared_and_each_once_while_the_leader_is_killed(self):
        names = [f"many-{n}" for n in range(COUNT)]
        start = time.monotonic()
        for part in range(5):
            self.lab.apply(*[appliance(name) for name in names[part::5]], timeout=120)
            if part in (1, 3):
                self.kill_leader()
        ready = lambda: sum(says(one, "Ready") == ("True", "Configured") for one in self.resources().values())
        until(lambda: ready() == COUNT, 240, f"{COUNT} are ready", every=1)
        applied = time.monotonic()
        kept = [name for n, name in enumerate(names) if n % 3]
        for part in range(3):
            changed = [appliance(name, replicas=2) for n, name in enumerate(names) if n % 3 == 1][part::3]
            self.lab.apply(*changed, timeout=120)
            gone = [name for n, name in enumerate(names) if n % 3 == 0][part::3]
            self.lab.kubectl("delete", "appliances", "-n", "shop", "--wait=false", *gone, timeout=120)
            if part < 2:
                self.kill_leader()
        until(lambda: set(self.resources()) == set(kept) and ready() == len(kept), 240, "as declared", every=1)
        done = time.monotonic()
        found = self.appliances()
        self.assertEqual(set(found), set(kept))
        self.assertEqual({name: one["replicas"] for name, one in found.items()}, {name: 2 if n % 3 == 1 else 1 for n, name in enumerate(names) if n % 3})
        mine = lambda counts: {actor: count for actor, count in counts.items() if actor.startswith("kubernetes/shop/many-")}
        once = lambda numbers: {f"kubernetes/shop/many-{n}": 1 for n in numbers}
        self.assertEqual(mine(self.audited("create")), once(range(COUNT)))
        self.assertEqual(mine(self.audited("update")), once(n for n in range(COUNT) if n % 3 == 1))
        self.assertEqual(mine(self.audited("delete")), once(n for n in range(COUNT) if n % 3 == 0))
        counts, _ = self.lab.calls(user="system:serviceaccount:rug:rug")
        print(f"{COUNT} resources: applied in {applied - start:.0f} s, changed in {done - applied:.0f} s; calls {counts}")
