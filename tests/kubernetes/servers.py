"""Servers that a release needs beside the cluster: real ZooKeeper and PostgreSQL, at the laboratory's address of this side."""

import os
import pathlib
import pwd
import shutil
import socket
import subprocess

import control
from processes import Failure, run, until

JARS = [f"/usr/share/java/{name}.jar" for name in ("zookeeper", "slf4j-simple", "netty-codec", "netty-resolver", "netty-transport-native-unix-common")]
ZOOKEEPER_PORT, POSTGRES_PORT = 2181, 5432
USER, PASSWORD = "rug", "of the tests"


def zookeeper(lab):
    """Starts a server; returns `host:port`."""
    home = pathlib.Path(lab.folder) / "zookeeper"
    (home / "data").mkdir(parents=True)
    settings = {
        "dataDir": home / "data",
        "clientPort": ZOOKEEPER_PORT,
        "clientPortAddress": control.GATEWAY,
        "tickTime": 500,
        "4lw.commands.whitelist": "srvr",
        "forceSync": "no",
    }
    (home / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    # The namespaces of the laboratory have control groups that Java's look at its container takes for an error.
    java = ["java", "-Xms32m", "-Xmx128m", "-XX:+UseSerialGC", "-XX:-UseContainerSupport", "-XX:TieredStopAtLevel=1", "-Dzookeeper.admin.enableServer=false"]
    lab.spawn("zookeeper", [*java, "-cp", ":".join(JARS), "org.apache.zookeeper.server.quorum.QuorumPeerMain", home / "zoo.cfg"])
    until(lambda: b"Mode: standalone" in _ask(ZOOKEEPER_PORT, b"srvr"), 60, "ZooKeeper serves")
    return f"{control.GATEWAY}:{ZOOKEEPER_PORT}"


def _ask(port, words):
    try:
        with socket.create_connection((control.GATEWAY, port), timeout=2) as connection:
            connection.sendall(words)
            answer = b""
            while part := connection.recv(4096):
                answer += part
            return answer
    except OSError:
        return b""


def postgres(lab):
    """Starts a server with an empty database; returns its URL without user and password, and with them."""
    programs = pathlib.Path(max(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), default="postgres")).parent
    home = pathlib.Path(lab.folder) / "postgres"
    home.mkdir()
    # It refuses to run as root.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    as_account = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"] if account else []
    (home / "password").write_text(PASSWORD)
    if account:
        for folder in (pathlib.Path(lab.folder), *pathlib.Path(lab.folder).parents):
            if folder.owner() == "root" and not folder.stat().st_mode & 0o001 and str(folder) != "/":
                folder.chmod(folder.stat().st_mode | 0o011)
        shutil.chown(home, account.pw_uid, account.pw_gid)
        shutil.chown(home / "password", account.pw_uid, account.pw_gid)
    new = ["--pgdata", home / "data", "--username", USER, "--pwfile", home / "password", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
    run([*as_account, programs / "initdb", *new])
    with open(home / "data" / "pg_hba.conf", "a", encoding="ascii") as rules:
        rules.write("host all all 0.0.0.0/0 scram-sha-256\n")
    flags = [f"listen_addresses={control.GATEWAY}", f"port={POSTGRES_PORT}", "unix_socket_directories=", "fsync=off", "shared_buffers=32MB"]
    lab.spawn("postgres", [*as_account, programs / "postgres", "-D", home / "data", *(word for flag in flags for word in ("-c", flag))])

    def make():
        env = {"PGPASSWORD": PASSWORD}
        words = ["psql", "--no-psqlrc", "-h", control.GATEWAY, "-p", str(POSTGRES_PORT), "-U", USER, "-d", "postgres", "-c", "CREATE DATABASE rug"]
        done = run([programs / words[0], *words[1:]], env, check=False)
        if done.returncode != 0 and "already exists" not in done.stderr:
            raise Failure(done.stderr.strip())
        return True

    def made():
        try:
            return make()
        except (Failure, subprocess.SubprocessError):
            return False

    until(made, 60, "PostgreSQL serves")
    place = f"{control.GATEWAY}:{POSTGRES_PORT}/rug"
    return f"postgres://{place}", f"postgres://{USER}:{PASSWORD.replace(' ', '%20')}@{place}"
