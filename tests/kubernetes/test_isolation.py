"""Laboratories do not see each other, and leave nothing behind however they end."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

import isolation
from processes import until

LAB = pathlib.Path(__file__).with_name("lab.py")


def processes():
    """Command lines of all processes that can be seen."""
    found = []
    for one in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(one.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            pass
    return found


@unittest.skipIf(os.environ.get("RUG_LAB_ISOLATED") != "1", "needs namespaces")
class Ends(unittest.TestCase):
    """Laboratories inside of this one's namespaces, as on a machine."""

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="l", dir="/tmp")))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUG_LAB")}
        kept.update({name: os.environ[name] for name in ("RUG_LAB_BIN",) if name in os.environ})
        self.environment = {**kept, "RUG_LAB_TMPDIR": str(self.folder)}

    def start(self, *words):
        child = subprocess.Popen([sys.executable, LAB, "up", *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def held(self):
        child = self.start("--hold", "--minutes", "5")
        seen = []
        until(lambda: seen.append(child.stdout.readline()) or "KUBECONFIG=" in seen[-1] or child.poll() is not None, 120, "the laboratory is there")
        self.assertIsNone(child.poll(), seen)
        self.assertTrue(self.programs())
        return child

    def programs(self):
        """Programs of laboratories in this test's folder."""
        return [line for line in processes() if f"{self.folder}/" in line]

    def test_two_side_by_side_do_not_see_each_other(self):
        create = ["--", "sh", "-c", "kubectl create configmap only && kubectl get configmaps --no-headers | wc -l"]
        both = [self.start(*create), self.start(*create)]
        for child in both:
            printed = child.communicate(timeout=180)[0]
            self.assertEqual(child.returncode, 0, printed)
            # The other one is that of the certificate authority.
            self.assertIn("\n2\n", printed)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_one_that_is_told_to_end_leaves_nothing(self):
        child = self.held()
        child.send_signal(signal.SIGTERM)
        child.wait(60)
        self.assertEqual(self.programs(), [])
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_one_that_is_killed_leaves_no_process_and_the_next_one_sweeps(self):
        child = self.held()
        child.kill()
        child.wait(10)
        until(lambda: not self.programs(), 20, "the kernel has ended all of it")
        self.assertTrue(list(self.folder.iterdir()))
        os.environ["RUG_LAB_TMPDIR"] = str(self.folder)
        self.addCleanup(os.environ.pop, "RUG_LAB_TMPDIR")
        isolation.sweep()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_command_s_failure_is_the_laboratory_s(self):
        self.assertEqual(self.start("--", "sh", "-c", "exit 7").wait(120), 7)
