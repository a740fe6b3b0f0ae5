"""Workers beside the cluster with many pods that only look as if they ran: calls of the API, and what becomes of them when it fails.

What listens at the addresses of the pods is this process; the rest is real: the API server, its controllers and scheduler, Rug.
"""

import collections
import json
import os
import signal
import socket
import threading

import metrics
import rug
from case import Failure, LabCase, until

QUICK = os.environ.get("RUG_LAB_QUICK") == "1"
MANY = 200 if QUICK else 2000
PORT = 8080


class Answers:
    """Accepts connections at all addresses of this side."""

    def __init__(self, port):
        self.socket = socket.create_server(("0.0.0.0", port), backlog=1024)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return

    def stop(self):
        self.socket.close()


class FleetCase(LabCase):
    """A coordinator and three workers, which reach the API server as a service account, through the fault proxy."""

    OPTIONS = {"simulated": True, "faults": True}
    WORKERS = 3

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        lab = cls.lab
        nodes = MANY // 100 + 2
        lab.apply(*lab.simulated.nodes(nodes))
        lab.apply(*rug.rights("default", "worker"))
        answers = Answers(PORT)
        cls.addClassCleanup(answers.stop)
        kubeconfig = lab.service_account("worker", faulty=True)
        cls.fleet = rug.Fleet(lab, cls.WORKERS, kubeconfig, rug.simulated_settings())
        cls.addClassCleanup(cls.fleet.stop)
        cls.fleet.start()

    def setUp(self):
        self.addCleanup(self.lab.faults.clear)

    def appliances(self, prefix, number):
        return [rug.appliance(f"{prefix}-{n}", image="simulated", probe_interval="5s") for n in range(number)]

    def running(self):
        """Names of the pods that run or are about to, by appliance."""
        found = collections.defaultdict(list)
        for one in self.lab.list("pods", "default", "rug.dev/appliance"):
            gone = one["status"].get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in one["metadata"]
            if not gone and not one["spec"].get("schedulingGates"):
                found[one["metadata"]["labels"]["rug.dev/appliance"]].append(one["metadata"]["name"])
        return found

    def one_each(self, number):
        """Checks that every appliance has exactly one pod."""
        found = self.running()
        doubled = {appliance: pods for appliance, pods in found.items() if len(pods) != 1}
        self.assertEqual((len(found), doubled), (number, {}))

    def gone(self):
        """Removes every appliance, and checks that nothing of it is left."""
        self.fleet.ctl("delete", "--all", "--yes", "--timeout", "10m", timeout=620)
        left = [one["metadata"]["name"] for kind in ("pods", "leases") for one in self.lab.list(kind, "default", "rug.dev/appliance")]
        self.assertEqual(left, [])


class Faults(FleetCase):
    """The API server is slow, refuses, is cut off, forgets."""

    NUMBER = 40

    def test_0_what_the_api_server_refuses_is_refused_before_it_is_kept(self):
        templates = {
            'unknown field "spec.tolerance"': {"spec": {"tolerance": "none"}},
            "nodeSelector": {"spec": {"nodeSelector": {"not a label!": "x"}}},
            "kubernetes.template_allow": {"spec": {"hostNetwork": True}},
        }
        for said, template in templates.items():
            with self.subTest(said):
                document = rug.appliance("wrong", image="simulated", pod=template)
                done = self.fleet.ctl("apply", "-f", "-", "--yes", given=json.dumps(document), check=False)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("pod: ", done.stderr)
                self.assertIn(said, done.stderr)
        self.assertEqual(self.fleet.list(), {})

    def test_1_nothing_is_doubled_or_lost_whatever_the_api_answers(self):
        rules = [
            ({"verb": "create|patch|update|delete"}, {"status": 500, "share": 0.1}),
            ({"verb": "create|patch|update|delete|get"}, {"status": 429, "retry_after": 1, "share": 0.1}),
            ({"verb": "patch|update"}, {"status": 409, "share": 0.1}),
            # The call takes effect, and its answer is lost.
            ({"verb": "create|patch|update|delete"}, {"cut": True, "forward": True, "share": 0.1}),
            ({"verb": "get|list"}, {"delay_ms": 500, "share": 0.2}),
        ]
        for match, action in rules:
            self.lab.fault(match, **action)
        self.fleet.apply(self.appliances("faulty", self.NUMBER), wait=False)
        self.fleet.settled(self.NUMBER, 300)
        self.lab.faults.expire(resource="pods")
        self.fleet.rebuild(f"faulty-{n}" for n in range(self.NUMBER // 2))
        self.lab.faults.clear()
        self.fleet.settled(self.NUMBER, 300)
        self.one_each(self.NUMBER)

    def test_2_an_api_server_that_is_away_is_named_and_nothing_is_restarted(self):
        before = self.running()
        self.lab.faults.down()
        try:
            self.fleet.apply(self.appliances("late", 1), wait=False)
            until(lambda: self.fleet.error("late-0"), 120, "the reason is shown")
        finally:
            self.lab.faults.up()
        self.fleet.settled(self.NUMBER + 1, 180)
        now = self.running()
        self.assertEqual({appliance: now.get(appliance) for appliance in before}, dict(before))
        self.fleet.ctl("delete", "late-0", "--yes", "--timeout", "2m")

    def test_3_the_api_server_restarts(self):
        before = self.running()
        self.lab.control.kill_api()
        self.lab.control.start_api()
        self.lab.control.wait()
        self.fleet.settled(self.NUMBER, 180)
        self.assertEqual(dict(self.running()), dict(before))

    def test_4_a_worker_that_was_stopped_and_wakes_is_refused(self):
        victim = next(iter({one.owner for one in self.fleet.list().values()}))
        theirs = [name for name, one in self.fleet.list().items() if one.owner == victim]
        self.fleet.rebuild(theirs)
        self.fleet.signal(victim, signal.SIGSTOP)
        try:
            until(lambda: all(one.owner != victim for one in self.fleet.list().values()), 120, "others have taken over")
            self.fleet.settled(self.NUMBER, 240)
            before = self.running()
        finally:
            self.fleet.signal(victim, signal.SIGCONT)
        self.fleet.healthy(self.WORKERS)
        self.fleet.settled(self.NUMBER, 240)
        # What moves back is not restarted.
        self.assertEqual(dict(self.running()), dict(before))
        self.one_each(self.NUMBER)

    def test_5_everything_can_be_removed(self):
        self.gone()


class Scale(FleetCase):
    """Many pods: one watch for each worker, no storms of lists."""

    def calls(self, start):
        counts, end = self.lab.calls(start, user="serviceaccount:default:worker")
        by = {f"{verb} {resource}": number for (_, verb, resource), number in sorted(counts.items())}
        return by, end

    def test_calls_of_the_api_for_each_change(self):
        lists = self.WORKERS * 2
        _, start = self.calls(0)
        self.fleet.apply(self.appliances("many", MANY), wait=False)
        self.fleet.settled(MANY, 900)
        booted, end = self.calls(start)
        print(f"\n{MANY} boots: {self.each(booted)}")
        self.one_each(MANY)
        self.assertLessEqual(booted.get("list pods", 0), lists)
        # On a small machine the API server ends watches whose readers get no processor in time; these go on where they were.
        ended = self.terminated() or 0
        print(f"watches that the API server ended because they were too slow, of all clients: {ended:.0f}")
        self.assertLessEqual(booted.get("watch pods", 0), self.WORKERS * 4 + ended)
        victim, held = collections.Counter(one.owner for one in self.fleet.list().values()).most_common(1)[0]
        before = self.running()
        self.fleet.signal(victim, signal.SIGKILL)
        until(lambda: all(one.owner not in ("", victim) for one in self.fleet.list().values()), 300, "others have taken over")
        # Until then the phases are what the former owner said last.
        until(lambda: self.calls(end)[0].get("patch pods", 0) >= held, 300, "the tokens of all pods are raised")
        self.fleet.settled(MANY, 300)
        taken, end = self.calls(end)
        print(f"takeover of {held}: {self.each(taken, held)}")
        self.assertEqual(dict(self.running()), dict(before), "a takeover restarts nothing")
        self.assertLessEqual(taken.get("list pods", 0), lists)
        self.gone()
        removed, _ = self.calls(end)
        print(f"{MANY} deletions: {self.each(removed)}")

    def terminated(self):
        """Watches of pods that were ended by the API server for being too slow to read."""
        page = self.lab.kubectl("get", "--raw", "/metrics")
        return metrics.values(page, 'apiserver_terminated_watchers_total')

    def each(self, calls, number=MANY):
        return ", ".join(f"{name} {total / number:.2f}" for name, total in calls.items())
