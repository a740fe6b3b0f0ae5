"""The laboratory itself: what the other tests build on has to be as in a real cluster."""

import os
import socket
import unittest

import control
import metrics
from case import Failure, LabCase, condition, pod, until
from processes import run

QUICK = os.environ.get("RUG_LAB_QUICK") == "1"
NODES = unittest.skipIf(QUICK or os.environ.get("RUG_LAB_ROOT") != "1", "needs root, and is not quick")
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.lab.rug.dev"},
    "spec": {
        "group": "lab.rug.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}, "required": ["size"]},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def widget(name, size):
    return {"apiVersion": "lab.rug.dev/v1", "kind": "Widget", "metadata": {"name": name, "namespace": "default"}, "spec": {"size": size}}


class ControlPlane(LabCase):
    """Without nodes, with the fault proxy."""

    OPTIONS = {"faults": True}

    def setUp(self):
        self.addCleanup(self.lab.faults.clear)

    def test_the_version_is_the_one_that_was_built(self):
        self.assertIn(f"Server Version: {self.lab.binaries.parent.name}", self.lab.kubectl("version"))

    def test_a_custom_resource_is_validated_by_its_schema(self):
        self.apply(WIDGETS)
        self.lab.kubectl("wait", "--for=condition=Established", "crd/widgets.lab.rug.dev", "--timeout=30s")
        self.lab.apply(widget("a", 2))
        with self.assertRaisesRegex(Failure, "should be greater than or equal to 1"):
            self.lab.apply(widget("b", 0))

    def test_pod_security_refuses_what_is_not_restricted(self):
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": RESTRICTED}})
        until(lambda: self.lab.get("serviceaccount", "default", "strict"), 20, "the namespace has its service account")
        self.lab.apply(pod("good", "sleep", "1", namespace="strict"))
        bad = pod("bad", "sleep", "1", namespace="strict")
        bad["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        with self.assertRaisesRegex(Failure, "allowPrivilegeEscalation != false"):
            self.lab.apply(bad)

    def test_a_service_account_may_do_what_its_roles_say(self):
        self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": "default"}})
        kubeconfig = self.lab.service_account("reader")
        with self.assertRaisesRegex(Failure, "forbidden"):
            self.lab.kubectl("get", "pods", kubeconfig=kubeconfig)
        self.lab.kubectl("create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=default:reader")
        until(lambda: self.lab.kubectl("get", "pods", kubeconfig=kubeconfig) is not None, 10, "the role is known")

    def test_an_admission_policy_is_enforced(self):
        policy = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "no-secrets"},
            "spec": {
                "matchConstraints": {
                    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]
                },
                "validations": [{"expression": "!object.metadata.name.startsWith('bad')", "message": "names are good"}],
            },
        }
        binding = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "no-secrets"},
            "spec": {"policyName": "no-secrets", "validationActions": ["Deny"]},
        }
        self.apply(policy, binding)

        def refused():
            done = self.lab.kubectl("create", "configmap", "bad", "--dry-run=server", check=False)
            return "names are good" in done.stderr

        until(refused, 20, "the policy is enforced")

    def test_the_audit_log_counts_calls(self):
        _, start = self.lab.calls()
        self.lab.kubectl("create", "configmap", "counted")
        until(lambda: self.lab.calls(start, user="lab-admin", verb="create", resource="configmaps")[0].total() == 1, 10, "the call is counted")

    def test_faults_reach_only_what_they_are_meant_for(self):
        faulty = self.lab.faulty_kubeconfig
        number = self.lab.fault({"verb": "create", "resource": "configmaps", "user": "lab-admin"}, status=409)
        with self.assertRaisesRegex(Failure, "fault"):
            self.lab.kubectl("create", "configmap", "refused", kubeconfig=faulty)
        self.lab.kubectl("get", "configmaps", kubeconfig=faulty)
        self.lab.kubectl("create", "configmap", "straight")
        self.assertEqual(self.lab.faults.hits(number), 1)
        self.lab.faults.clear()
        # It takes effect, but its client does not learn of it.
        self.lab.fault({"verb": "create", "resource": "configmaps"}, cut=True, forward=True, times=1)
        self.assertNotEqual(self.lab.kubectl("create", "configmap", "lost", kubeconfig=faulty, check=False).returncode, 0)
        self.assertIsNotNone(self.lab.get("configmap", "lost"))
        # A client is told when to come back, and does.
        number = self.lab.fault({"resource": "configmaps"}, status=429, retry_after=1, times=2)
        self.lab.kubectl("get", "configmaps", kubeconfig=faulty)
        self.assertEqual(self.lab.faults.hits(number), 2)

    def test_watches_expire_on_command(self):
        watch = self.lab.spawn("watch", [self.lab.binaries / "kubectl", "get", "configmaps", "--watch"], {"KUBECONFIG": str(self.lab.faulty_kubeconfig)})
        self.addCleanup(watch.kill)
        until(lambda: self.lab.faults.expire(resource="configmaps") == 1, 10, "the watch is there")
        until(lambda: not watch.runs(), 10, "the watch has ended")
        self.assertIn("too old resource version", "\n".join(watch.lines()))

    def test_the_api_server_comes_back_after_it_was_killed(self):
        self.lab.kubectl("create", "configmap", "kept")
        self.lab.control.kill_api()
        self.assertNotEqual(self.lab.kubectl("get", "configmaps", check=False).returncode, 0)
        self.lab.control.start_api()
        self.lab.control.wait()
        self.assertIsNotNone(self.lab.get("configmap", "kept"))

    def test_helm_is_there_in_both_versions(self):
        self.assertIn("v4.", self.lab.helm("version", "--short"))
        self.assertIn("v3.", self.lab.helm("version", "--short", version=3))


@NODES
class Nodes(LabCase):
    """Two real nodes."""

    OPTIONS = {"nodes": 2}

    def test_a_pod_runs_and_has_an_address(self):
        self.apply(pod("server", "serve", "8080"))
        found = self.runs("server")
        address = found["status"]["podIP"]
        self.assertTrue(address.startswith("10.81."), address)
        self.assertIn("server", self.lab.kubectl("exec", "server", "--", "/tool", "fetch", f"http://{address}:8080/"))
        self.assertIn("KUBERNETES_SERVICE_HOST=10.96.0.1", self.lab.kubectl("exec", "server", "--", "/tool", "env"))

    def test_a_service_leads_to_pods_by_name_from_pods_of_both_nodes(self):
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        self.apply(service, pod("web", "serve", "8080", nodeName="node-1"), pod("near", "sleep", "600", nodeName="node-1"))
        self.apply(pod("far", "sleep", "600", nodeName="node-2"))
        for name in ("web", "near", "far"):
            self.runs(name)
        for name in ("near", "far"):
            until(
                lambda name=name: "web" in self.lab.kubectl("exec", name, "--", "/tool", "fetch", "http://web.default.svc.cluster.local/"),
                20,
                f"{name} reaches the Service by its name",
            )
        address = self.lab.get("service", "web")["spec"]["clusterIP"]
        self.assertIn("web", run([self.lab.binaries / "tool", "fetch", f"http://{address}/"]), "a process beside the nodes reaches it, too")

    def test_a_container_that_eats_too_much_is_killed_for_it(self):
        one = pod("glutton", "eat", "200", restartPolicy="Never", container={"resources": {"limits": {"memory": "48Mi"}}})
        self.apply(one)
        state = until(lambda: self.container("glutton").get("terminated"), 60, "the container has ended")
        self.assertEqual((state["reason"], state["exitCode"]), ("OOMKilled", 137))

    def test_an_image_that_cannot_be_pulled_is_waited_for(self):
        self.apply(pod("missing", image="registry.invalid/nothing:1"))
        until(lambda: self.container("missing").get("waiting", {}).get("reason") == "ImagePullBackOff", 60, "the kubelet backs off")

    def test_a_pod_that_fits_nowhere_is_unschedulable(self):
        self.apply(pod("large", "sleep", "1", container={"resources": {"requests": {"cpu": "1000"}}}))

        def reason():
            found = (self.pod("large").get("status") or {}).get("conditions") or []
            return next((one.get("reason") for one in found if one["type"] == "PodScheduled" and one["status"] == "False"), None)

        self.assertEqual(until(reason, 20, "the scheduler has given up"), "Unschedulable")

    def test_a_container_that_fails_is_started_again_later(self):
        self.apply(pod("failing", "exit", "3"))
        until(lambda: self.container("failing").get("waiting", {}).get("reason") == "CrashLoopBackOff", 60, "the kubelet backs off")
        last = self.pod("failing")["status"]["containerStatuses"][0]["lastState"]["terminated"]
        self.assertEqual((last["reason"], last["exitCode"]), ("Error", 3))

    def test_a_grace_period_is_kept_and_then_over(self):
        self.apply(pod("stubborn", "stubborn", "600", terminationGracePeriodSeconds=3))
        self.runs("stubborn")
        self.lab.kubectl("delete", "pod", "stubborn", "--wait=false")
        self.assertIsNotNone(self.pod("stubborn"))
        until(lambda: self.pod("stubborn") is None, 30, "the pod is gone")

    def test_probes_decide_on_readiness_and_restarts(self):
        probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
        self.apply(pod("probed", "serve", "8080", container={"readinessProbe": probe}))
        found = self.runs("probed")
        run([self.lab.binaries / "tool", "fetch", f"http://{found['status']['podIP']}:8080/fail"])
        until(lambda: condition(self.pod("probed"), "Ready") == "False", 20, "the pod is not ready any more")

    def test_a_pod_gets_files_secrets_and_a_token(self):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}, "stringData": {"word": "quiet"}}
        one = pod("mounted", "serve", "8080", volumes=[{"name": "s", "secret": {"secretName": "s"}}])
        one["spec"]["containers"][0]["volumeMounts"] = [{"name": "s", "mountPath": "/secret"}]
        one["spec"]["containers"][0]["env"] = [{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "word"}}}]
        self.apply(secret, one)
        self.runs("mounted")
        fetch = ["exec", "mounted", "--", "/tool", "fetch", "http://127.0.0.1:8080/files"]
        self.assertEqual(self.lab.kubectl(*fetch[:-1], fetch[-1] + "/secret/word"), "quiet")
        self.assertIn("WORD=quiet", self.lab.kubectl("exec", "mounted", "--", "/tool", "env"))
        token = self.lab.kubectl(*fetch[:-1], fetch[-1] + "/var/run/secrets/kubernetes.io/serviceaccount/token")
        self.assertEqual(token.count("."), 2)

    def test_a_claim_gets_a_volume_that_outlives_its_pod(self):
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        one = pod("keeping", "serve", "8080", volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}])
        one["spec"]["containers"][0]["volumeMounts"] = [{"name": "d", "mountPath": "/data"}]
        one["spec"]["securityContext"]["fsGroup"] = 65532
        self.apply(claim, one)
        first = self.runs("keeping")["spec"]["nodeName"]
        self.lab.kubectl("delete", "pod", "keeping")
        self.lab.apply(one)
        self.assertEqual(self.runs("keeping")["spec"]["nodeName"], first)
        self.lab.kubectl("delete", "pod", "keeping")
        self.lab.kubectl("delete", "pvc", "data")
        until(lambda: not self.lab.list("persistentvolumes"), 30, "the volume is deleted")

    def test_logs_and_eviction_work(self):
        self.apply(pod("talking", "env"))
        until(lambda: "KUBERNETES_SERVICE_HOST" in self.lab.kubectl("logs", "talking"), 60, "the log can be read")
        self.lab.kubectl("drain", "node-2", "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=60s", timeout=90)
        self.assertEqual([one["metadata"]["name"] for one in self.lab.list("pods") if one["spec"].get("nodeName") == "node-2"], [])
        self.lab.kubectl("uncordon", "node-2")

    def test_a_node_that_loses_its_power_is_noticed_and_comes_back(self):
        node = self.lab.nodes[1]
        self.apply(pod("lost", "sleep", "600", nodeName="node-2"))
        self.runs("lost")
        node.power_off()
        until(lambda: condition(self.lab.get("node", "node-2"), "Ready") == "Unknown", 60, "the node is not heard of any more")
        until(lambda: condition(self.pod("lost"), "Ready") == "False", 20, "its pods are not ready any more")
        node.restart()
        until(lambda: condition(self.lab.get("node", "node-2"), "Ready") == "True", 60, "the node is ready again")
        restarted = until(lambda: (self.pod("lost")["status"]["containerStatuses"][0]["restartCount"] or None), 60, "the container was started again")
        self.assertEqual(restarted, 1)


@NODES
class Policies(LabCase):
    """One node, with policies enforced, and with metrics."""

    OPTIONS = {"nodes": 1, "policies": True}

    def reaches(self, name, url):
        return self.lab.kubectl("exec", name, "--", "/tool", "fetch", url, check=False).returncode == 0

    def test_a_network_policy_lets_pass_what_it_names(self):
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "guarded", "namespace": "default"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "guarded"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": "web"}]}],
            },
        }
        probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}
        guarded = pod("guarded", "serve", "8080", container={"ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": probe})
        self.apply(guarded, pod("friend", "sleep", "600"), pod("stranger", "sleep", "600"))
        for name in ("guarded", "friend", "stranger"):
            self.runs(name)
        url = f"http://{self.pod('guarded')['status']['podIP']}:8080/"
        self.assertTrue(self.reaches("stranger", url))
        self.apply(policy)
        until(lambda: not self.reaches("stranger", url), 30, "the stranger is kept out")
        self.assertTrue(self.reaches("friend", url))
        self.assertEqual(condition(self.pod("guarded"), "Ready"), "True", "probes pass")

    def test_an_autoscaler_follows_what_pods_export(self):
        adapter = metrics.Adapter(self.lab, 8080).start()
        self.addCleanup(adapter.stop)
        template = pod("scaled", "serve", "8080")
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "scaled", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "scaled"}},
                "template": {"metadata": {"labels": {"app": "scaled"}}, "spec": template["spec"]},
            },
        }
        scaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "scaled", "namespace": "default"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"},
                "minReplicas": 1,
                "maxReplicas": 3,
                "metrics": [{"type": "Pods", "pods": {"metric": {"name": "lab_value"}, "target": {"type": "AverageValue", "averageValue": "10"}}}],
            },
        }
        self.apply(deployment, scaler)
        address = until(lambda: self.lab.list("pods", "default", "app=scaled")[0]["status"].get("podIP"), 30, "the pod has an address")
        until(lambda: run([self.lab.binaries / "tool", "fetch", f"http://{address}:8080/set/18"]) is not None, 30, "the pod answers")
        until(lambda: self.lab.get("deployment", "scaled")["status"].get("readyReplicas") == 2, 90, "there are two")

    def test_metrics_of_containers_are_there(self):
        metrics.Server(self.lab).start()
        self.apply(pod("measured", "sleep", "600"))
        self.runs("measured")
        until(lambda: "measured" in self.lab.kubectl("top", "pods"), 90, "what the pod uses is known")


@unittest.skipIf(QUICK, "not quick")
class Simulation(LabCase):
    """Simulated nodes."""

    OPTIONS = {"simulated": True}

    def test_a_thousand_pods_become_ready(self):
        self.lab.apply(*self.lab.simulated.nodes(10, pods=200))
        template = pod("x", "sleep", "1", tolerations=[{"key": "simulated", "operator": "Exists"}])
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many", "namespace": "default"},
            "spec": {
                "replicas": 1000,
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": template["spec"]},
            },
        }
        self.lab.apply(deployment)
        until(lambda: self.lab.get("deployment", "many")["status"].get("readyReplicas") == 1000, 180, "all are ready", 1)
        addresses = {one["status"]["podIP"] for one in self.lab.list("pods", "default")}
        self.assertEqual(len(addresses), 1000)
        with socket.create_server(("0.0.0.0", 0)) as responder:
            for address in addresses:
                socket.create_connection((address, responder.getsockname()[1]), 2).close()
                responder.accept()[0].close()


@unittest.skipIf(QUICK or control.oldest() is None, "the oldest API server is not built (tests/kubernetes/build oldest)")
class Oldest(LabCase):
    """The oldest API server that manifests are checked with."""

    OPTIONS = {"api_binaries": control.oldest()}

    def test_it_validates_what_it_is_given(self):
        self.assertIn(f"Server Version: {control.oldest().parent.name}", self.lab.kubectl("version"))
        self.lab.apply(pod("dry", "sleep", "1"))
        wrong = pod("wrong", "sleep", "1")
        wrong["spec"]["nonsense"] = 1
        with self.assertRaisesRegex(Failure, "nonsense"):
            self.lab.apply(wrong)
