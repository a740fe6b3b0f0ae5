"""A test case with a laboratory of its own, which its tests share."""

import subprocess
import unittest

from lab import Lab, condition, pod
from processes import Failure, until


class LabCase(unittest.TestCase):
    """Starts a laboratory before the first test of a class and ends it after the last. `OPTIONS` are those of `Lab`."""

    OPTIONS = {}
    lab = None

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(**cls.OPTIONS)
        try:
            cls.lab.start()
        except BaseException:
            cls.say_logs()
            cls.lab.stop()
            raise
        cls.addClassCleanup(cls.lab.stop)

    @classmethod
    def say_logs(cls, lines=8):
        """Prints the ends of all logs."""
        for log in sorted(cls.lab.control.logs.glob("*.log")):
            print(f"--- {log.name}")
            print("\n".join(line[:400] for line in log.read_text(errors="replace").splitlines()[-lines:]))

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        done = super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            self.say_objects()
        return done

    def say_objects(self):
        """Prints pods and events, when a test has failed."""
        for words in (["get", "pods", "-A", "-o", "wide"], ["get", "events", "-A", "--sort-by=.lastTimestamp"]):
            try:
                print("\n".join(self.lab.kubectl(*words, check=False).stdout.splitlines()[-25:]))
            except (Failure, OSError, subprocess.SubprocessError) as error:
                print(error)

    # What tests ask most

    def apply(self, *objects):
        """Applies objects and removes them after the test."""
        self.lab.apply(*objects)
        for one in objects:
            if isinstance(one, dict):
                meta = one["metadata"]
                words = ["delete", one["kind"], meta["name"], "--namespace", meta.get("namespace", "default"), "--ignore-not-found", "--wait=false"]
                self.addCleanup(self.lab.kubectl, *words)

    def pod(self, name, namespace="default"):
        return self.lab.get("pod", name, namespace)

    def container(self, name, namespace="default"):
        """The state of a pod's only container: one of waiting, running, terminated, with what is said about it."""
        statuses = ((self.pod(name, namespace) or {}).get("status") or {}).get("containerStatuses") or [{}]
        return statuses[0].get("state") or {}

    def runs(self, name, seconds=60, namespace="default"):
        """Waits until a pod is ready, and returns it."""
        return until(
            lambda: (lambda one: one if condition(one, "Ready") == "True" else None)(self.pod(name, namespace)), seconds, f"pod {name} is ready"
        )


__all__ = ["Failure", "LabCase", "condition", "pod", "until"]
