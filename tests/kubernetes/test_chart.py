"""The chart: what it renders, what it refuses, and what an API server says about it."""

import functools
import json
import os
import pathlib
import re
import time
import tomllib
import unittest

import charts
from charts import CHART, DATABASE, ROOT, VALUES, Refused, containers, helm, named, pods, render, variable

VERSIONS = [version for version in (4, 3) if charts.helm_of(version)]
HELM = unittest.skipUnless(VERSIONS, "needs Helm: PATH, RUG_HELM or RUG_HELM3")


def title(values):
    return values.name if values else "the defaults"


def with_every_values(test):
    """A test of what each values file makes, as subtests."""

    @functools.wraps(test)
    def every(self):
        for values in VALUES:
            with self.subTest(values=title(values)):
                test(self, values, render(values))

    return every


@HELM
class Rendered(unittest.TestCase):
    """Without any cluster."""

    def test_every_values_file_is_clean_with_every_helm(self):
        for version in VERSIONS:
            for values in VALUES:
                with self.subTest(helm=version, values=title(values)):
                    helm("lint", "--strict", str(CHART), *charts.options(values), version=version)
                    same = charts.trimmed(render(values, version=version)), charts.trimmed(render(values))
                    self.assertEqual(*same, "every Helm makes the same")

    def test_every_wrong_setting_is_named(self):
        for overrides, said in [
            ({"coordinator.config.machine.debounse": "1s"}, "debounse"),
            ({"coordinator.config.machine.debounce": "soon"}, "debounce"),
            ({"coordinator.config.machine.debounce": 5}, "debounce"),
            ({"coordinator.config.machine.planner.strategy": "best"}, "strategy"),
            ({"coordinator.config.connections.max": -1}, "max"),
            ({"coordinator.config.authorization.rules": [{"uri": "a", "role": ["admin"]}]}, "role"),
            ({"worker.config.session.on_stop": "drop"}, "on_stop"),
            ({"worker.config.weigth": 2}, "weigth"),
            ({"worker.config.runner.lifecycle.boot_attempts": 1.5}, "boot_attempts"),
            ({"worker.config.drivers": ["No Name"]}, "drivers"),
            ({"worker.replica": 4}, "replica"),
            ({"worker.podAntiAffinity": "maybe"}, "podAntiAffinity"),
            ({"tls.mode": "on"}, "mode"),
            ({"image.digest": "sha256:1"}, "digest"),
            ({"coordination.url": "etcd://a"}, "url"),
        ]:
            with self.subTest(**overrides):
                for version in VERSIONS:
                    with self.assertRaises(Refused) as refused:
                        helm("lint", str(CHART), *charts.options(None, overrides), version=version)
                    self.assertIn(said, str(refused.exception))

    def test_values_that_do_not_go_together_are_refused_all_at_once(self):
        wrong = {
            "coordinator.replicas": 3, "worker.replicas": 65, "coordinator.ingress.enabled": True, "store.url": "postgres://rug:hush@db/rug",
            "worker.config.coordination.url": "zookeeper://a", "worker.zone.from": "value",
        }
        with self.assertRaises(Refused) as refused:
            render(overrides=wrong)
        for field in ["coordinator.replicas", "tls.workerNames", "coordinator.ingress.host", "store.url", "worker.config.coordination.url", "worker.zone.value"]:
            self.assertIn(f"  {field}: ", str(refused.exception))
        self.assertNotIn("hush", str(refused.exception))
        with self.assertRaisesRegex(Refused, "store: with ZooKeeper"):
            render(overrides={"coordination.url": "zookeeper://zk:2181"})

    @with_every_values
    def test_every_pod_keeps_to_the_restricted_standard(self, _, objects):
        for where, template in pods(objects):
            context = template["spec"]["securityContext"]
            self.assertTrue(context["runAsNonRoot"] and context["runAsUser"] > 0, where)
            self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"}, where)
            for key in ["hostNetwork", "hostPID", "hostIPC"]:
                self.assertNotIn(key, template["spec"])
            for volume in template["spec"].get("volumes", []):
                self.assertLessEqual(set(volume) - {"name"}, {"configMap", "secret", "emptyDir"}, where)
            for container in containers(template):
                own = container["securityContext"]
                self.assertEqual((own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]), (False, True), where)
                self.assertEqual(own["capabilities"], {"drop": ["ALL"]}, where)
                self.assertIn("memory", container["resources"]["limits"], where)
                self.assertTrue({"cpu", "memory"} <= set(container["resources"]["requests"]), where)

    @with_every_values
    def test_only_what_calls_the_api_server_has_a_token(self, values, objects):
        tokens = {where for where, template in pods(objects) if template["spec"]["automountServiceAccountToken"]}
        jobs = {where for where in tokens if "certificates" in where}
        self.assertEqual(tokens - jobs, {"StatefulSet/rug-worker", "StatefulSet/rug-coordinator"})
        quiet = dict(pods(render(overrides={"witness.enabled": False})))
        self.assertFalse(quiet["StatefulSet/rug-coordinator"]["spec"]["automountServiceAccountToken"])
        for account in (one for one in objects if one["kind"] == "ServiceAccount"):
            self.assertFalse(account["automountServiceAccountToken"])

    @with_every_values
    def test_rights_are_no_more_than_is_needed(self, _, objects):
        for role in (one for one in objects if one["kind"] in ("Role", "ClusterRole")):
            for rule in role["rules"]:
                self.assertNotIn("*", rule["verbs"] + rule["resources"] + rule["apiGroups"])
                if "secrets" in rule["resources"] and role["metadata"]["name"] == "rug-certificates":
                    self.assertTrue(rule["resourceNames"] and set(rule["verbs"]) <= {"get", "patch"})
                elif "secrets" in rule["resources"]:
                    self.assertLessEqual(set(rule["verbs"]), {"get", "create", "delete"}, "nobody lists secrets")

    def test_nothing_secret_is_in_what_everybody_may_read(self):
        overrides = {"coordination.existingSecret": {"name": "zk", "key": "u"}, **{"store.existingSecret.name": "db"}}
        objects = render(CHART / "values-ha.yaml", overrides)
        for one in objects:
            if one["kind"] == "ConfigMap":
                self.assertNotRegex(json.dumps(one), r"(postgres|zookeeper)://|PRIVATE KEY|password")
            if one["kind"] == "Secret":
                self.assertFalse(one.get("data") or one.get("stringData"), "secrets are filled by a job, and are in no release record")
        for part in ("coordinator", "worker"):
            container = named(objects, "StatefulSet", f"rug-{part}")["spec"]["template"]["spec"]["containers"][0]
            found = variable(container, f"RUG_{part.upper()}_COORDINATION__URL")
            self.assertEqual(found["valueFrom"], {"secretKeyRef": {"name": "zk", "key": "u"}})
        self.assertIsNone(variable(container, "RUG_WORKER_STORE__URL"), "workers have no business with the database")

    @with_every_values
    def test_selectors_name_the_pods_that_they_mean(self, _, objects):
        templates = dict(pods(objects))
        for kind in ("PodDisruptionBudget", "Service"):
            for one in (found for found in objects if found["kind"] == kind):
                selector = one["spec"]["selector"]
                selector = selector.get("matchLabels", selector) if kind == "PodDisruptionBudget" else selector
                met = [where for where, pod in templates.items() if selector.items() <= pod["metadata"]["labels"].items()]
                component = one["metadata"]["labels"]["app.kubernetes.io/component"]
                self.assertEqual(met, [f"StatefulSet/rug-{component}"], one["metadata"]["name"])
        for where, pod in templates.items():
            for constraint in pod["spec"].get("topologySpreadConstraints", []):
                self.assertLessEqual(constraint["labelSelector"]["matchLabels"].items(), pod["metadata"]["labels"].items(), where)

    def test_a_worker_has_time_to_drain(self):
        for drain in ["30s", "2m", "1m 30s", "1500ms", "1h"]:
            spec = named(render(overrides={"worker.config.session.drain_timeout": drain}), "StatefulSet", "rug-worker")["spec"]["template"]["spec"]
            self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], charts.seconds(drain) + 5, drain)
        spec = named(render(), "StatefulSet", "rug-worker")["spec"]["template"]["spec"]
        self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], 35)

    def test_a_changed_value_rolls_what_it_concerns(self):
        def templates(overrides):
            objects = render(CHART / "values-trial.yaml", {**overrides})
            return {where: json.dumps(template, sort_keys=True) for where, template in pods(objects) if where.startswith("StatefulSet")}

        before = templates({})
        everything, none = set(before), set()
        for overrides, rolled in [
            ({"coordinator.config.machine.debounce": "1s"}, {"StatefulSet/rug-coordinator"}),
            ({"worker.config.session.retry_cap": "1s"}, {"StatefulSet/rug-worker"}),
            ({"worker.replicas": 5}, none),
            ({"tls.workerNames": 99}, none),
            ({"networkPolicy.enabled": False}, none),
            ({"metrics.podMonitor.enabled": True}, none),
            # Workers roll with the coordinators' image, which they wait for.
            ({"coordinator.image.tag": "2"}, {"StatefulSet/rug-coordinator", "StatefulSet/rug-worker"}),
            ({"worker.image.tag": "2"}, {"StatefulSet/rug-worker"}),
            ({"commonLabels": {"team": "a"}}, everything),
        ]:
            with self.subTest(**overrides):
                after = templates(overrides)
                self.assertEqual({where for where in before if before[where] != after[where]}, rolled)

    @with_every_values
    def test_workers_wait_for_the_coordinators_of_their_release(self, _, objects):
        coordinator, worker = (named(objects, "StatefulSet", f"rug-{part}")["spec"]["template"]["spec"] for part in ("coordinator", "worker"))
        revision = variable(coordinator["containers"][0], "RUG_REVISION")["value"]
        awaiting = worker["initContainers"][-1]["command"]
        self.assertIn(f"--revision={revision}", awaiting)
        self.assertIn("--address=rug-coordinator-headless.rug.svc.cluster.local:9464", awaiting)

    def test_settings_are_written_as_they_were_meant(self):
        overrides = {
            "coordinator.config": {
                "machine": {"freeze_fraction": 1, "max_moves_in_flight": 7, "planner": {"band": 1.2}},
                "workers": [{"name": "a-*", "max_weight": 3}, {"name": 'quoted " and <b> \\', "hosts": ["h1"]}],
                "authorization": {"rules": [{"uri": "spiffe://x/*", "roles": ["worker:*"]}], "tokens": {"rules": [{"value": "v", "roles": ["admin"]}]}},
                "listen": ["0.0.0.0:7470", "unix:x.sock"],
                "metrics": {"per_worker": True},
            },
            "worker.config.process.log_quota": 2147483648,
        }
        objects = render(overrides=overrides)
        coordinator = tomllib.loads(named(objects, "ConfigMap", "rug-coordinator")["data"]["coordinator.toml"])
        for key, value in overrides["coordinator.config"].items():
            if isinstance(value, dict):
                self.assertLessEqual(value.items(), coordinator[key].items(), key)
            else:
                self.assertEqual(coordinator[key], value, key)
        self.assertIsInstance(coordinator["machine"]["max_moves_in_flight"], int)
        self.assertEqual(coordinator["metrics"], {"listen": "0.0.0.0:9464", "insecure": True, "per_worker": True})
        self.assertEqual(coordinator["tls"]["cert"], "/etc/rug/tls/tls.crt")
        worker = tomllib.loads(named(objects, "ConfigMap", "rug-worker")["data"]["worker.toml"])
        self.assertEqual(worker["process"]["log_quota"], 2147483648)
        self.assertEqual(worker["session"]["coordinators"], ["https://rug-coordinator-0.rug-coordinator-headless.rug.svc.cluster.local:7470"])
        self.assertEqual(worker["drivers"], ["kubernetes"])

    def test_with_zookeeper_workers_find_coordinators_there(self):
        objects = render(CHART / "values-trial.yaml")
        url = "zookeeper://rug-zookeeper.rug.svc.cluster.local:2181/rug?timeout=6"
        for part in ("coordinator", "worker"):
            found = tomllib.loads(named(objects, "ConfigMap", f"rug-{part}")["data"][f"{part}.toml"])
            self.assertEqual(found["coordination"]["url"], url)
        self.assertNotIn("session", found)
        annotations = named(objects, "StatefulSet", "rug-zookeeper")["metadata"]["annotations"]
        self.assertIn("rug.dev/for-trials-only", annotations)
        self.assertEqual(named(objects, "StatefulSet", "rug-coordinator")["spec"].get("volumeClaimTemplates"), None, "nothing is kept in pods")

    def test_certificates_have_the_names_that_roles_are_made_of(self):
        chart = json.loads(named(render(), "ConfigMap", "rug-certificates")["data"]["plan.json"])["certificates"]
        coordinator, worker, admin = chart
        headless = "*.rug-coordinator-headless.rug.svc.cluster.local"
        self.assertTrue({"rug-coordinator.rug.svc.cluster.local", "localhost", headless} <= set(coordinator["dns"]))
        self.assertEqual(coordinator["uris"][0], "rug://coordinator/rug-coordinator-0")
        self.assertEqual((worker["uris"][0], len(worker["uris"])), ("rug://worker/rug-worker-0", 64))
        self.assertEqual(admin["uris"], ["rug://role/admin"])
        managed = {one["metadata"]["name"]: one["spec"] for one in render(CHART / "values-cert-manager.yaml") if one["kind"] == "Certificate"}
        for planned in chart:
            spec = managed[planned["secret"]]
            self.assertEqual((spec["uris"], spec.get("dnsNames", [])), (planned["uris"], planned["dns"]))

    def test_pods_wait_for_certificates_and_see_renewed_ones(self):
        for where, template in pods(render()):
            for volume in (one for one in template["spec"].get("volumes", []) if "secret" in one):
                self.assertEqual([item["key"] for item in volume["secret"]["items"]], ["ca.crt", "tls.crt", "tls.key"])
                for container in containers(template):
                    for mount in (one for one in container.get("volumeMounts", []) if one["name"] == volume["name"]):
                        self.assertNotIn("subPath", mount, f"{where}: a part of a volume is not renewed")

    def test_replicas_are_left_to_the_autoscaler(self):
        objects = render(CHART / "values-autoscaling.yaml")
        self.assertNotIn("replicas", named(objects, "StatefulSet", "rug-worker")["spec"])
        scaler = named(objects, "HorizontalPodAutoscaler")["spec"]
        self.assertEqual(scaler["metrics"][0]["pods"]["metric"]["name"], "rug_appliances_held")
        metrics = (ROOT / "docs/observability/metrics.md").read_text()
        self.assertIn("| `rug_appliances_held` |", metrics)

    def test_the_zone_comes_from_the_label_of_the_pod(self):
        zone = lambda overrides: variable(named(render(overrides=overrides), "StatefulSet", "rug-worker")["spec"]["template"]["spec"]["containers"][0], "RUG_WORKER_ZONE")
        self.assertEqual(zone({})["valueFrom"]["fieldRef"]["fieldPath"], "metadata.labels['topology.kubernetes.io/zone']")
        self.assertEqual(zone({"worker.zone": {"from": "value", "value": "z1"}})["value"], "z1")
        self.assertIsNone(zone({"worker.zone.from": "none"}))

    def test_what_is_monitored_is_what_observability_has(self):
        objects = render(CHART / "values-monitoring.yaml")
        rules = named(objects, "PrometheusRule")["spec"]["groups"]
        alerts = re.findall(r"- alert: (\w+)", (ROOT / "docs/observability/prometheus/alerts.yaml").read_text())
        self.assertEqual([rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule], alerts)
        for group in rules:
            for rule in group["rules"]:
                if "alert" in rule:
                    self.assertTrue(rule["annotations"]["runbook_url"].startswith("https://wiki.example.org/rug/"))
        shown = {name: json.loads(text) for one in objects if one["kind"] == "ConfigMap" for name, text in one["data"].items() if name.endswith(".json") and "dashboard" in one["metadata"]["name"]}
        kept = {file.name: json.loads(file.read_text()) for file in (ROOT / "docs/observability/dashboards").glob("*.json")}
        self.assertEqual(shown, kept)

    def test_extras_go_where_they_are_named(self):
        extras = {
            f"{part}.{key}": value
            for part in ("coordinator", "worker")
            for key, value in {
                "podLabels": {"l": "1"}, "podAnnotations": {"a": "1"}, "extraEnv": [{"name": "E", "value": "1"}], "priorityClassName": "high",
                "extraVolumes": [{"name": "v", "emptyDir": {}}], "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}], "nodeSelector": {"n": "1"},
                "tolerations": [{"operator": "Exists"}], "extraContainers": [{"name": "side", "image": "i"}],
            }.items()
        } | {"imagePullSecrets": ["pull"], "commonAnnotations": {"c": "1"}, "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}]}
        objects = render(overrides=extras)
        for part in ("coordinator", "worker"):
            template = named(objects, "StatefulSet", f"rug-{part}")["spec"]["template"]
            spec, container = template["spec"], template["spec"]["containers"][0]
            self.assertEqual((template["metadata"]["labels"]["l"], template["metadata"]["annotations"]["a"], template["metadata"]["annotations"]["c"]), ("1", "1", "1"))
            self.assertEqual((spec["priorityClassName"], spec["nodeSelector"], spec["imagePullSecrets"]), ("high", {"n": "1"}, [{"name": "pull"}]))
            self.assertEqual(variable(container, "E")["value"], "1")
            self.assertIn({"name": "v", "mountPath": "/v"}, container["volumeMounts"])
            self.assertEqual(spec["containers"][1]["name"], "side")
        named(objects, "ConfigMap", "rug-x")

    def test_long_names_stay_within_what_kubernetes_takes(self):
        objects = render(release="r" * 53, namespace="n" * 63)
        for one in objects:
            most = {"CronJob": 52, "StatefulSet": 52}.get(one["kind"], 63)
            self.assertLessEqual(len(one["metadata"]["name"]), most, one["metadata"]["name"])
            for value in one["metadata"].get("labels", {}).values():
                self.assertLessEqual(len(value), 63)


try:
    from case import LabCase, condition, until
except ImportError:
    LabCase = None

NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "rug", "labels": {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}},
}
# What other projects bring, which a laboratory does not have.
FOREIGN = ("cert-manager.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
IMAGE = pathlib.Path(os.environ.get("RUG_IMAGE") or ROOT / "target/image/rug.tar")
# For binaries that have no driver `kubernetes`: RUG_CHART_DRIVER=simulated.
DRIVER = os.environ.get("RUG_CHART_DRIVER", "kubernetes")
SIMULATED = "name: rug-test\nkind: custom\ndriver: simulated\nprobe_interval: 1s\nspec: {command: none}\n"

if LabCase:

    class Accepted(LabCase):
        """By a real API server, in a namespace that enforces the restricted standard."""

        def test_every_object_is_valid_and_makes_no_warning(self):
            self.lab.apply(NAMESPACE)
            until(lambda: self.lab.get("serviceaccount", "default", "rug"), 30, "the namespace has its service account")
            for values in VALUES:
                objects = [one for one in render(values) if not one["apiVersion"].startswith(FOREIGN)]
                listed = {"apiVersion": "v1", "kind": "List", "items": objects}
                with self.subTest(values=title(values)):
                    words = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"]
                    said = self.lab.kubectl(*words, given=json.dumps(listed))
                    self.assertEqual(said.count("(server dry run)"), len(objects), said)

    OLDEST = charts.control.oldest() if hasattr(charts.control, "oldest") else None

    @unittest.skipUnless(OLDEST, "needs the oldest API server: tests/kubernetes/build")
    class AcceptedByTheOldest(Accepted):
        """The same by the oldest API server that can be had."""

        OPTIONS = {"api_binaries": OLDEST}

    @unittest.skipUnless(IMAGE.exists() and os.environ.get("RUG_LAB_ROOT") == "1", f"needs nodes, and {IMAGE} (make image WITH=archive)")
    class Installed(LabCase):
        """On real nodes, with the defaults of the chart, where network policies and the restricted standard hold."""

        OPTIONS = {"nodes": 3, "policies": True}

        @classmethod
        def setUpClass(cls):
            super().setUpClass()
            cls.lab.load_image(IMAGE)
            cls.lab.apply(NAMESPACE)

        def words(self, **overrides):
            own = {"worker.config.drivers": [DRIVER], **({"tests.appliance": SIMULATED} if DRIVER == "simulated" else {}), **overrides}
            return ["rug", str(CHART), "--namespace", "rug", *charts.options(None, own)]

        def pods(self):
            """Pods of the release by name: when each was made, and whether it is ready."""
            found = self.lab.list("pods", "rug", "app.kubernetes.io/instance=rug")
            return {one["metadata"]["name"]: (one["metadata"]["uid"], condition(one, "Ready") == "True") for one in found if "certificates" not in one["metadata"]["name"]}

        def settled(self, coordinators=1, workers=3, seconds=180):
            """Waits until so many pods are there and ready, of the newest revision."""

            def ready():
                for part, wanted in (("coordinator", coordinators), ("worker", workers)):
                    status = (self.lab.get("statefulset", f"rug-{part}", "rug") or {}).get("status", {})
                    if status.get("readyReplicas") != wanted or status.get("replicas") != wanted or status["currentRevision"] != status["updateRevision"]:
                        return None
                return self.pods()

            return until(ready, seconds, f"{coordinators} coordinators and {workers} workers are ready")

        def caller(self, name, labels):
            """A pod that calls the API with the administrator's certificate."""
            test = next(template for where, template in pods(render(overrides={"worker.config.drivers": [DRIVER]})) if where.startswith("Pod/"))
            spec = {**test["spec"], "initContainers": [], "volumes": [one for one in test["spec"]["volumes"] if one["name"] == "tls"]}
            (step,) = spec["containers"]
            mounts = [one for one in step["volumeMounts"] if one["name"] == "tls"]
            spec["containers"] = [{**step, "command": ["rugctl", "list", "--timeout", "8s"], "volumeMounts": mounts}]
            return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "rug", "labels": labels}, "spec": spec}

        def phase(self, name, seconds=60):
            """How a pod ended."""
            ended = lambda: (phase := self.lab.get("pod", name, "rug")["status"].get("phase")) in ("Succeeded", "Failed") and phase
            return until(ended, seconds, f"pod {name} ends")

        def test_the_defaults_install_upgrade_scale_and_roll_back(self):
            start = time.monotonic()
            self.lab.helm("install", *self.words(), "--wait", "--timeout", "180s")
            installed = self.settled()
            print(f"ready {time.monotonic() - start:.0f} s after helm install", flush=True)
            self.assertLess(time.monotonic() - start, 180)
            self.lab.helm("test", "rug", "--namespace", "rug", "--timeout", "120s")

            # Who has a certificate and not the label is kept out by the network policy.
            self.apply(self.caller("client", {"rug-client": "true"}), self.caller("stranger", {}))
            self.assertEqual((self.phase("client"), self.phase("stranger")), ("Succeeded", "Failed"))

            # A setting of workers rolls workers, one after the other, and no coordinator.
            self.lab.helm("upgrade", *self.words(**{"worker.config.session.retry_cap": "1s"}))
            upgraded = self.settled(seconds=300)
            rolled = {name for name in installed if installed[name][0] != upgraded[name][0]}
            self.assertEqual(rolled, {"rug-worker-0", "rug-worker-1", "rug-worker-2"})

            # An image that coordinators do not survive stops at the first worker.
            self.lab.helm("upgrade", *self.words(**{"image.tag": "none", "worker.config.session.retry_cap": "1s"}))
            until(lambda: not self.pods().get("rug-coordinator-0", ("", True))[1], 60, "the coordinator is replaced")
            until(lambda: not self.pods().get("rug-worker-2", ("", True))[1], 120, "the last worker is replaced")
            held = self.pods()
            self.assertEqual([held[f"rug-worker-{n}"][0] for n in (0, 1)], [upgraded[f"rug-worker-{n}"][0] for n in (0, 1)])
            self.lab.helm("rollback", "rug", "2", "--namespace", "rug")
            self.settled(seconds=300)

            self.lab.kubectl("scale", "statefulset", "rug-worker", "--replicas", "5", "--namespace", "rug")
            self.settled(workers=5)
            self.lab.kubectl("scale", "statefulset", "rug-worker", "--replicas", "2", "--namespace", "rug")
            self.settled(workers=2)
            self.lab.helm("test", "rug", "--namespace", "rug", "--timeout", "120s")

            # Certificates are renewed without a restart.
            before = self.lab.get("secret", "rug-worker-tls", "rug")["data"]["tls.crt"]
            self.lab.kubectl("patch", "secret", "rug-ca", "--namespace", "rug", "--type=merge", "-p", '{"data":null}')
            self.lab.kubectl("create", "job", "--from=cronjob/rug-certificates", "now", "--namespace", "rug")
            until(lambda: self.lab.get("secret", "rug-worker-tls", "rug")["data"]["tls.crt"] != before, 60, "certificates are made anew")
            kept = {name: uid for name, (uid, _) in self.pods().items()}
            self.settled(workers=2, seconds=240)
            self.assertEqual({name: uid for name, (uid, _) in self.pods().items()}, kept)

            self.lab.helm("uninstall", "rug", "--namespace", "rug", "--wait")
            self.assertEqual(self.lab.list("secrets", "rug", "app.kubernetes.io/instance=rug"), [])
            self.assertEqual(len(self.lab.list("persistentvolumeclaims", "rug")), 1, "what is declared is kept")


if __name__ == "__main__":
    unittest.main()
