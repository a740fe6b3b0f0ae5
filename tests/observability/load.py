"""What happens to the cluster: a calm time, then everything that goes wrong."""

import contextlib
import json
import signal
import socket
import time

from processes import wait


def custom(name, **more):
    spec = {"command": "none", **more.pop("spec", {})}
    return {"name": name, "tenant": "demo", "kind": "custom", "driver": "simulated", "probe_interval": "1s", "spec": spec, **more}


def process(name, *command, **more):
    spec = {"command": command[0], "args": list(command[1:]), "probe": "process", **more.pop("spec", {})}
    return {"name": name, "tenant": "demo", "kind": "custom", "probe_interval": "1s", "spec": spec, **more}


def balancer(name, port, *members):
    listeners = [{"name": "http", "port": port, "members": [{"port": member} for member in members]}]
    return {"name": name, "tenant": "demo", "kind": "loadbalancer", "probe_interval": "1s", "spec": {"listeners": listeners}}


def calm(cluster, ports, seconds):
    """A fleet that is well, for so long: nothing may alert then."""
    cluster.apply(*(custom(f"pretend-{n}", replicas=2) for n in range(1, 19)))
    cluster.apply(*(process(f"ticker-{n}", "sleep", "86400") for n in range(1, 4)))
    cluster.apply(balancer("edge", ports[0], ports[1]))
    cluster.settled()
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def moves(cluster, say):
    """Moves for every reason."""
    say("drain worker-2 and start it again")
    cluster.workers["worker-2"].stop()
    cluster.workers["worker-2"].start()
    cluster.healthy(3)
    cluster.settled()
    say("kill worker-3, and start it again 12 s later")
    cluster.workers["worker-3"].kill()
    time.sleep(12)
    cluster.workers["worker-3"].start()
    cluster.healthy(3)
    cluster.settled()
    say("evict worker-1")
    cluster.ctl("worker", "evict", "worker-1", "--yes", "--reason", "check")
    cluster.healthy(3)
    cluster.settled()


def changes(cluster, say):
    """What clients do."""
    say("scale, rebuild, check, change and delete; ask for what there is not")
    cluster.ctl("scale", "--tenant", "demo", "pretend-1", "--replicas", "4")
    cluster.ctl("rebuild", "--tenant", "demo", "ticker-1")
    cluster.ctl("check", "--tenant", "demo", "pretend-2", check=False)
    cluster.apply(custom("pretend-3", labels={"app": "changed"}, replicas=1))
    cluster.ctl("delete", "--tenant", "demo", "pretend-18", "--yes")
    cluster.ctl("get", "--tenant", "demo", "nothing", check=False)
    cluster.ctl("rebalance", "list")
    cluster.ctl("audit")
    say("a client that speaks something else, again and again")
    for _ in range(40):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(cluster.socket.removeprefix("unix:"))
            client.sendall(b"no HTTP/2\r\n" * 10)


def failures(cluster, ports, say):
    """Appliances that do not boot or stop answering, a driver that fails, a load balancer that is full."""
    say("appliances that end at once, and one whose probe is never answered")
    cluster.apply(*(process(f"broken-{n}", "false") for n in range(1, 7)), wait_for_it=False)
    deaf = process("deaf", "sleep", "86400", spec={"port": ports[2], "probe": {"http": {"path": "/"}}})
    cluster.apply(deaf, wait_for_it=False)
    say("a driver that fails, and a load balancer that has all the connections it may have")
    worker = cluster.workers["worker-3"]
    worker.stop()
    usual, worker.env = worker.env, {**worker.env, "RUG_WORKER_SIMULATED__FAILURE_RATE": "0.6"}
    worker.start()
    cluster.healthy(3)
    with crowd(cluster, ports):
        for number in range(1, 13):
            cluster.ctl("rebuild", "--tenant", "demo", f"pretend-{number}", "--no-wait")
        error = lambda: cluster.ctl("list", "--tenant", "demo", "--phase", "Error", "-o", "json").count('"broken-') >= 6
        wait(90, "the broken appliances are in phase Error", error, every=1)
        time.sleep(8)
    worker.stop()
    worker.env = usual
    worker.start()
    cluster.healthy(3)
    cluster.settled()


@contextlib.contextmanager
def crowd(cluster, ports):
    """Two clients of a load balancer that may have one."""
    with socket.create_server(("127.0.0.1", ports[4])):
        full = balancer("full", ports[3], ports[4])
        full["spec"]["listeners"][0]["limits"] = {"max_connections": 1}
        cluster.apply(full)
        clients = []
        try:
            for _ in range(2):
                clients.append(socket.create_connection(("127.0.0.1", ports[3]), timeout=10))
            yield
        finally:
            for client in clients:
                client.close()
    cluster.ctl("delete", "--tenant", "demo", "full", "--yes")


def pauses(cluster, say):
    """What an operator stops, and what the leader stops by itself."""
    say("pause placement for 70 s, with an appliance that waits")
    cluster.ctl("placement", "pause", "--reason", "check")
    cluster.apply(custom("waits"), wait_for_it=False)
    time.sleep(70)
    cluster.ctl("placement", "resume")
    cluster.settled()
    say("kill two of three workers for longer than their leases: the brake")
    for name in ("worker-2", "worker-3"):
        cluster.workers[name].kill()
    wait(30, "the brake holds", lambda: cluster.status()["frozen"], every=0.5)
    time.sleep(4)
    for name in ("worker-2", "worker-3"):
        cluster.workers[name].start()
    cluster.healthy(3)
    cluster.settled()


def leaders(cluster, port, say):
    """Leaders that go and come back, and a worker that finds none."""
    say("a worker that finds no coordinator")
    cluster.start_astray(port)
    say("kill the coordinator, start it again 6 s later; then restart it four times")
    cluster.coordinator.kill()
    time.sleep(6)
    cluster.coordinator.start()
    cluster.healthy(3)
    for _ in range(4):
        cluster.coordinator.stop()
        cluster.coordinator.start()
        cluster.healthy(3)
        # For each term to be seen once.
        time.sleep(2)
    cluster.settled()


def suspended(cluster, say):
    """A worker that sleeps, and then some time in which all is well again."""
    say("suspend worker-1 for longer than its lease, twice")
    for _ in range(2):
        cluster.workers["worker-1"].signal(signal.SIGSTOP)
        wait(30, "worker-1 is lost", lambda: cluster.status()["workers"].get("dead"), every=0.5)
        time.sleep(2)
        cluster.workers["worker-1"].signal(signal.SIGCONT)
        cluster.healthy(3)
        cluster.settled()
    time.sleep(15)


def store_lost(cluster, say):
    """The database is taken away from the coordinator that uses it, which has to be restarted to take it again."""
    say("take the database away for a while")
    database = cluster.root / "coordinator" / "rug.db"
    database.rename(database.with_suffix(".away"))
    for number in range(1, 4):
        late = json.dumps(custom(f"late-{number}"))
        cluster.ctl("apply", "-f", "-", "--yes", "--no-wait", "--timeout", "3s", check=False, text=late)
    cluster.coordinator.kill()
    database.with_suffix(".away").rename(database)
    cluster.coordinator.start()
    cluster.healthy(3)
    cluster.settled()
