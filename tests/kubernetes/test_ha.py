"""A release that has to survive: values-ha.yaml with real ZooKeeper and PostgreSQL, on three nodes. What an operator does to it, and what happens to it.

The appliances are pods that must not notice: by none of it is one of them restarted, but by the loss of its own node.
"""

import json
import os
import unittest

import rug
import servers
from case import Failure, LabCase, condition, until

APPLIANCES = 12
NAMESPACE = "rug"
# How long an appliance may have no owner: lease and takeover, with what loaded machines add.
UNOWNED = 60


@unittest.skipUnless(rug.image().exists() and os.environ.get("RUG_LAB_ROOT") == "1", f"needs nodes, and {rug.image()} (make image WITH=archive)")
class HighAvailability(LabCase):
    """The tests follow each other, by their names; each leaves the release as it should be."""

    OPTIONS = {"nodes": 3}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        lab = cls.lab
        lab.load_image(rug.image())
        zookeeper = servers.zookeeper(lab)
        _, database = servers.postgres(lab)
        lab.kubectl("create", "namespace", NAMESPACE)
        lab.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        for name, url in (("rug-zookeeper", f"zookeeper://{zookeeper}/rug?timeout=6"), ("rug-database", database)):
            lab.kubectl("create", "secret", "generic", name, "--namespace", NAMESPACE, f"--from-literal=url={url}")
        cls.release("install")
        cls.rugctl = rug.Client(lab, NAMESPACE)
        until(lambda: cls.rugctl("cluster", "status", check=False).returncode == 0, 120, "the release answers")
        documents = [rug.appliance(f"a-{number}") for number in range(APPLIANCES)]
        cls.rugctl("apply", "-f", "-", "--timeout", "3m", given="\n---\n".join(json.dumps(one) for one in documents))
        cls.settled()

    @classmethod
    def release(cls, verb, *words):
        chart = rug.ROOT / "helm/rug"
        own = ["--values", chart / "values-ha.yaml", "--values", rug.small(cls.lab)]
        cls.lab.helm(verb, "rug", chart, "--namespace", NAMESPACE, *own, *words, "--wait", "--timeout", "5m", timeout=330)

    @classmethod
    def settled(cls, seconds=180):
        """Waits until every appliance is configured and has an owner that is a pod of the release."""

        def settled():
            found = cls.rugctl.list()
            workers = {one["metadata"]["name"] for one in cls.workers() if condition(one, "Ready") == "True"}
            bad = {name: (one.phase, one.owner) for name, one in found.items() if one.phase != "configured" or one.owner not in workers}
            if len(found) != APPLIANCES or bad:
                raise Failure(f"{len(found)} appliances; workers {sorted(workers)}; not settled: {bad}")
            return found

        return until(rug.patient(settled), seconds, "all appliances are configured and owned")

    @classmethod
    def workers(cls):
        return cls.lab.list("pods", NAMESPACE, "app.kubernetes.io/component=worker")

    def pods(self):
        """Pods of appliances that run: uid, node and restarts of each, by appliance."""
        found = {}
        for one in self.lab.list("pods", NAMESPACE, "rug.dev/appliance"):
            if one["status"].get("phase") == "Running" and "deletionTimestamp" not in one["metadata"]:
                restarts = sum(status["restartCount"] for status in one["status"].get("containerStatuses", []))
                found[one["metadata"]["labels"]["rug.dev/appliance"]] = (one["metadata"]["uid"], one["spec"]["nodeName"], restarts)
        return found

    def unchanged(self, before, lost=None):
        """Checks that the pods are those of before, those on the lost node excepted."""
        now = self.pods()
        self.assertEqual(set(now), set(before))
        for appliance, (uid, node, restarts) in before.items():
            if node != lost:
                self.assertEqual(now[appliance], (uid, node, restarts), appliance)
            else:
                self.assertNotEqual(now[appliance][0], uid, f"{appliance} was on {lost}")

    def test_1_scaling_moves_ownership_and_no_pod(self):
        before = self.pods()
        for replicas in (6, 2, 3):
            self.release("upgrade", "--set", f"worker.replicas={replicas}")
            until(lambda: len([one for one in self.workers() if condition(one, "Ready") == "True"]) == replicas, 120, f"{replicas} workers are ready")
            found = self.settled()
            owners = {one.owner for one in found.values()}
            self.assertTrue(len(owners) > 1, owners)
            self.unchanged(before)

    def test_2_pods_of_rug_come_back(self):
        before = self.pods()
        leader = self.rugctl.leader()
        for name in (self.workers()[0]["metadata"]["name"], leader):
            uid = self.lab.get("pod", name, NAMESPACE)["metadata"]["uid"]
            with rug.Unowned(self.rugctl) as unowned:
                self.lab.kubectl("delete", "pod", name, "--namespace", NAMESPACE, "--grace-period=0", "--force")

                def back():
                    one = self.lab.get("pod", name, NAMESPACE)
                    return one and one["metadata"]["uid"] != uid and condition(one, "Ready") == "True"

                until(back, 120, f"{name} is back")
                self.settled()
            self.assertLess(unowned.longest(), UNOWNED, unowned.seen)
            self.unchanged(before)

    def test_2_a_worker_that_is_killed_is_not_waited_for(self):
        before = self.pods()
        victim = self.workers()[0]
        name, node = victim["metadata"]["name"], next(one for one in self.lab.nodes if one.name == victim["spec"]["nodeName"])
        with rug.Unowned(self.rugctl) as unowned:
            which = f"grep -qz '^POD_NAME={name}$' /proc/$p/environ"
            node.inside("sh", "-c", f"for p in $(pgrep -f 'rug-worker run --config'); do {which} && kill -KILL $p; done; true")
            seen = f"its process has ended, as the kubelet of pod {name} saw"
            until(lambda: seen in self.lab.kubectl("logs", self.rugctl.leader(), "--namespace", NAMESPACE, "-c", "coordinator"), 60, "its kubelet says so")
            self.settled()
        print(f"longest without an owner: {unowned.longest():.1f} s")
        self.unchanged(before)

    def test_3_a_changed_setting_rolls_what_it_concerns_and_is_rolled_back(self):
        def uids(component):
            found = self.lab.list("pods", NAMESPACE, f"app.kubernetes.io/component={component}")
            return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

        before, coordinators, workers = self.pods(), uids("coordinator"), uids("worker")
        self.release("upgrade", "--set", "worker.config.session.act_margin=2s")
        self.settled()
        self.assertEqual(uids("coordinator"), coordinators, "their settings are as before")
        after = uids("worker")
        self.assertTrue(all(after[name] != uid for name, uid in workers.items()), (workers, after))
        self.unchanged(before)
        self.lab.helm("rollback", "rug", "--namespace", NAMESPACE, "--wait", "--timeout", "5m", timeout=330)
        self.settled()
        again = uids("worker")
        self.assertTrue(all(again[name] != uid for name, uid in after.items()), (after, again))
        self.unchanged(before)

    def test_4_a_node_is_drained(self):
        # One that has a worker.
        node = self.workers()[0]["spec"]["nodeName"]
        before = self.pods()
        self.addCleanup(self.lab.kubectl, "uncordon", node)
        self.lab.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=240s", timeout=260)
        self.lab.kubectl("uncordon", node)
        self.settled(240)
        until(lambda: set(self.pods()) == set(before), 120, "every appliance has its pod")
        self.unchanged(before, lost=node)

    def test_5_a_node_is_lost(self):
        before = self.pods()
        index, node = next((i, one) for i, one in enumerate(self.lab.nodes) if any(place == one.name for _, place, _ in before.values()))
        with rug.Unowned(self.rugctl) as unowned:
            self.lab.nodes[index].power_off()
            # Not before the API says that its pods can no longer run.
            held = {appliance for appliance, (_, place, _) in before.items() if place == node.name}
            self.lab.kubectl("delete", "node", node.name)
            until(lambda: {a for a, (_, place, _) in self.pods().items() if place != node.name} >= set(before), 240, "others take over")
            self.settled(240)
        self.assertTrue(held)
        self.assertLess(unowned.longest(), UNOWNED, unowned.seen)
        self.unchanged(before, lost=node.name)

    def test_6_nothing_that_was_done_broke_a_rule(self):
        status = self.rugctl.json("cluster", "status")
        self.assertEqual(status["violations"], 0, status)
