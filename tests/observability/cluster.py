"""A real cluster of one coordinator and some workers, as `rugctl up` starts them.

`rugctl up` passes no address of `/metrics` on to its workers, since all would have the same. So the processes are started one by one here,
with the same arguments, and each gets a port of its own.
"""

import json
import os
import pathlib
import subprocess
import time

from processes import Failure, Process, wait

COORDINATOR = "coordinator-1"


class Cluster:
    """The processes and a client of them."""

    def __init__(self, binaries, root, ports, otlp):
        """`ports` are for `/metrics`, the coordinator's first; `otlp` is the environment of every process."""
        self.binaries, self.root = pathlib.Path(binaries), pathlib.Path(root)
        self.socket = f"unix:{self.root}/coordinator.sock"
        self.metrics = {COORDINATOR: ports[0]}
        (self.root / "logs").mkdir(parents=True)
        self.coordinator = self._process(
            COORDINATOR,
            ["run", "--name", COORDINATOR, "--listen", self.socket, "--state-dir", self.root / "coordinator"],
            {**otlp(COORDINATOR), "RUG_COORDINATOR_METRICS__LISTEN": f"127.0.0.1:{ports[0]}"},
        )
        # A worker that knows no coordinator that is there, once it is started.
        self.astray = None
        self.workers = {}
        for number, port in enumerate(ports[1:], 1):
            name = f"worker-{number}"
            self.metrics[name] = port
            words = ["run", "--name", name, "--coordinator", self.socket, "--state-dir", self.root / "workers"]
            words += ["--driver", "process", "--driver", "simulated"]
            words += ["--default-user", "nobody"] if os.geteuid() == 0 else []
            env = {
                **otlp(name),
                "RUG_WORKER_METRICS__LISTEN": f"127.0.0.1:{port}",
                # Short, so that an appliance that cannot boot is in phase `Error` within seconds.
                "RUG_WORKER_RUNNER__LIFECYCLE__BOOT_ATTEMPTS": "3",
                "RUG_WORKER_RUNNER__LIFECYCLE__BOOT_TIMEOUT": "2s",
                "RUG_WORKER_SIMULATED__WORLD": f"{self.root}/world",
                # Some calls of the driver have to fail, or nothing of that could be seen.
                "RUG_WORKER_SIMULATED__FAILURE_RATE": "0.02",
                "RUG_WORKER_SIMULATED__BOOT_LATENCY": "20ms",
                "RUG_WORKER_SIMULATED__PROBE_LATENCY": "2ms",
            }
            self.workers[name] = self._process(name, words, env)

    def _process(self, name, words, env):
        binary = self.binaries / ("rug-coordinator" if name == COORDINATOR else "rug-worker")
        return Process(name, [binary, *words], self.root / "logs" / f"{name}.log", env)

    def start_astray(self, port):
        """A worker that cannot reach the cluster, and shows it at `port`."""
        words = ["run", "--name", "astray", "--coordinator", f"unix:{self.root}/nowhere.sock", "--state-dir", self.root / "astray", "--driver", "simulated"]
        self.astray = self._process("astray", words, {"RUG_WORKER_METRICS__LISTEN": f"127.0.0.1:{port}"}).start()

    def start(self):
        self.coordinator.start()
        for worker in self.workers.values():
            worker.start()
        self.healthy(len(self.workers))

    def stop(self):
        """Removes every appliance, as far as the cluster can, then ends the processes."""
        try:
            self.ctl("delete", "--all", "--yes", "--timeout", "40s", check=False)
        finally:
            # Workers first: they hand over nothing while all of them stop.
            for worker in self.workers.values():
                worker.signal(2)
            for process in [*self.workers.values(), self.coordinator, *([self.astray] if self.astray else [])]:
                process.stop(15)

    def ctl(self, *words, check=True, text=None):
        """Runs `rugctl` and returns what it printed."""
        command = [self.binaries / "rugctl", "--server", self.socket, *words]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RUG_")}
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=env, check=False)
        if check and done.returncode:
            raise Failure(f"rugctl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, *documents, wait_for_it=True):
        """Creates or changes appliances."""
        words = ["apply", "-f", "-", "--yes"] + ([] if wait_for_it else ["--no-wait"])
        self.ctl(*words, text="\n---\n".join(json.dumps(document) for document in documents))

    def healthy(self, workers, seconds=60):
        """Waits until so many workers are healthy and none is anything else that may still act."""

        def found():
            counts = self.status()["workers"]
            return counts.get("healthy", 0) >= workers and not counts.get("suspect", 0) and not counts.get("dead", 0)

        wait(seconds, f"{workers} healthy workers", found, every=0.5)

    def settled(self, seconds=90):
        """Waits until every appliance has an owner and nothing moves; twice, since a worker that is back is given its share only then."""

        def found():
            status = self.status()
            return status["moves_in_flight"] == 0 and status["unowned"]["appliances"] == 0 and not status["frozen"]

        for _ in range(2):
            wait(seconds, "every appliance has an owner", found, every=0.5)
            time.sleep(1)

    def status(self):
        return json.loads(self.ctl("cluster", "status", "-o", "json"))

    def logs(self):
        """Every line of every process, with the name of the process."""
        for process in [self.coordinator, *self.workers.values()]:
            for line in process.lines():
                yield process.name, line
