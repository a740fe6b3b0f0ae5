"""Faults of nodes and of the way to the API server, as clients inside of the cluster see them."""

import images
from case import LabCase, condition, pod, until
from test_cluster import NODES

KUBECTL = "lab.local/kubectl:1"
ACCOUNT = "system:serviceaccount:default:default"


@NODES
class Inside(LabCase):
    """One node, and the fault proxy between its pods and the API server."""

    OPTIONS = {"nodes": 1, "faults": True}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        program = {"/usr/bin/kubectl": cls.lab.binaries / "kube"}
        cls.lab.load_image(images.write(cls.lab.folder / "kubectl.tar", KUBECTL, program, ["/usr/bin/kubectl"]))
        cls.lab.kubectl("create", "rolebinding", "look", "--clusterrole=view", "--serviceaccount=default:default")

    def test_a_pod_s_calls_pass_through_the_proxy(self):
        self.addCleanup(self.lab.faults.clear)
        self.lab.faults.forget()
        number = self.lab.fault({"user": ACCOUNT, "verb": "list", "resource": "configmaps"}, status=429, retry_after=1, times=1)
        words = ["get", "configmaps", "--cache-dir=/tmp/cache"]
        self.apply(pod("client", *words, image=KUBECTL, restartPolicy="OnFailure", container={"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]},
                       volumes=[{"name": "tmp", "emptyDir": {}}]))  # fmt: skip
        until(lambda: self.pod("client")["status"]["phase"] == "Succeeded", 90, "the client has its answer")
        self.assertIn("kube-root-ca.crt", self.lab.kubectl("logs", "client"))
        self.assertEqual(self.lab.faults.hits(number), 1)
        codes = {one["code"]: one["count"] for one in self.lab.faults.requests(user=ACCOUNT, verb="list", resource="configmaps")}
        self.assertEqual(codes, {429: 1, 200: 1})

    def test_a_node_that_is_cut_off_is_lost_and_its_pods_go_on(self):
        node = self.lab.nodes[0]
        self.apply(pod("surviving", "sleep", "600"))
        before = self.runs("surviving")["status"]["containerStatuses"][0]["containerID"]
        node.cut()
        until(lambda: condition(self.lab.get("node", node.name), "Ready") == "Unknown", 60, "the node is not heard of")
        node.mend()
        until(lambda: condition(self.lab.get("node", node.name), "Ready") == "True", 60, "the node is heard of again")
        self.assertEqual(self.runs("surviving")["status"]["containerStatuses"][0]["containerID"], before)

    def test_containers_outlive_their_kubelet(self):
        node = self.lab.nodes[0]
        self.apply(pod("kept", "sleep", "600"))
        before = self.runs("kept")["status"]["containerStatuses"][0]
        node.stop_kubelet()
        node.start_kubelet()
        until(lambda: condition(self.lab.get("node", node.name), "Ready") == "True", 60, "the node is ready")
        self.apply(pod("next", "sleep", "600"))
        self.runs("next")
        node.pause_kubelet()
        self.lab.apply(pod("waiting", "sleep", "600"))
        self.assertEqual(self.container("waiting"), {})
        node.resume_kubelet()
        self.runs("waiting")
        after = self.pod("kept")["status"]["containerStatuses"][0]
        self.assertEqual((before["containerID"], after["restartCount"]), (after["containerID"], 0))
