"""The chart's HorizontalPodAutoscaler by appliances per worker: it follows the fleet, up and down, and does not go back and forth."""

import json
import os
import threading
import unittest

import charts
import metrics
import rug
from case import Failure, LabCase, until

NAMESPACE = "rug"
EACH = 8
LEAST, MOST = 2, 5
FLEET = 30
# The windows of the chart are minutes; what they are for is the same with these.
BEHAVIOR = {
    "scaleUp": {"stabilizationWindowSeconds": 10, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 15}]},
    "scaleDown": {"stabilizationWindowSeconds": 45, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]},
}


class Replicas:
    """Keeps which numbers of replicas were asked for, one after the other."""

    def __init__(self, lab):
        self.lab, self.seen, self.stopped = lab, [], threading.Event()
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
                wanted = self.lab.get("statefulset", "rug-worker", NAMESPACE)["spec"]["replicas"]
            except (Failure, OSError, TypeError, KeyError):
                continue
            if self.seen[-1:] != [wanted]:
                self.seen.append(wanted)


@unittest.skipUnless(rug.image().exists() and os.environ.get("RUG_LAB_ROOT") == "1", f"needs nodes, and {rug.image()} (make image WITH=archive)")
class Autoscaling(LabCase):
    OPTIONS = {"nodes": 3}

    def settled(self, client, number, seconds=240):
        def found():
            appliances = client.list()
            bad = {name: one.phase for name, one in appliances.items() if one.phase != "configured" or not one.owner}
            if len(appliances) != number or bad:
                raise Failure(f"{len(appliances)} appliances; not settled: {bad}")
            return True

        until(rug.patient(found), seconds, f"{number} appliances are configured")

    def instances(self):
        """Uids of the pods of appliances that are not about to end."""
        found = self.lab.list("pods", NAMESPACE, "rug.dev/appliance")
        return {one["metadata"]["uid"] for one in found if "deletionTimestamp" not in one["metadata"]}

    def workers(self, replicas, seconds=240):
        """Waits until so many workers are there, and ready."""

        def found():
            status = self.lab.get("statefulset", "rug-worker", NAMESPACE)["status"]
            scaler = (self.lab.get("hpa", "rug-worker", NAMESPACE) or {}).get("status")
            if status.get("readyReplicas") != replicas or status.get("replicas") != replicas:
                raise Failure(f"{status.get('readyReplicas')} of {status.get('replicas')} are ready; {json.dumps(scaler)}")
            return True

        until(found, seconds, f"there are {replicas} workers")

    def test_it_follows_the_number_of_appliances_and_does_not_flap(self):
        adapter = metrics.Adapter(self.lab, 9464).start()
        self.addCleanup(adapter.stop)
        self.lab.load_image(rug.image())
        self.lab.kubectl("create", "namespace", NAMESPACE)
        scaling = {"enabled": True, "minReplicas": LEAST, "maxReplicas": MOST, "appliancesPerWorker": EACH, "behavior": BEHAVIOR}
        values = self.lab.folder / "scaling.yaml"
        values.write_text(json.dumps({"worker": {"autoscaling": scaling}}))
        words = ["--namespace", NAMESPACE, "--values", rug.small(self.lab), "--values", values]
        self.lab.helm("install", "rug", charts.CHART, *words, "--wait", "--timeout", "3m", timeout=200)
        client = rug.Client(self.lab, NAMESPACE)
        self.workers(LEAST)
        with Replicas(self.lab) as replicas:
            documents = [rug.appliance(f"a-{number}") for number in range(FLEET)]
            client("apply", "-f", "-", "--timeout", "5m", given="\n---\n".join(json.dumps(one) for one in documents))
            self.workers(-(-FLEET // EACH))
            self.settled(client, FLEET)
            up = list(replicas.seen)
            # Moves that a scaling brings about move what is held from worker to worker, and must not bring about the next one.
            began = self.instances()
            left = EACH + 4
            client("delete", *(f"a-{number}" for number in range(left, FLEET)), "--yes", "--timeout", "5m")
            kept = self.instances()
            self.assertLessEqual(kept, began)
            self.workers(LEAST)
            self.settled(client, left)
        self.assertEqual(self.instances(), kept, "no scaling restarts a pod")
        print(f"replicas asked for: {replicas.seen}")
        self.assertEqual(up, sorted(up), "up, and not down in between")
        down = replicas.seen[len(up):]
        self.assertEqual(down, sorted(down, reverse=True), "down, and not up in between")
        self.assertEqual(client.json("cluster", "status")["violations"], 0)


if __name__ == "__main__":
    unittest.main()
