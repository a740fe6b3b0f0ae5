"""Child processes, free ports and waits with a deadline."""

import os
import signal
import socket
import subprocess
import time


class Failure(Exception):
    """The check cannot go on, or found something wrong."""


def free_ports(count):
    """Ports of the loopback address that nothing listens at, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait(seconds, what, condition, every=0.2):
    """Returns the first true value of `condition`; raises `Failure` at the deadline."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            found = condition()
        except (OSError, ValueError, Failure, subprocess.CalledProcessError) as error:
            found, last = None, f": {error}"
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds} s in vain: {what}{last}")
        time.sleep(every)


class Process:
    """One child with a log file. It leads its own process group, so that a Ctrl-C reaches this program alone."""

    def __init__(self, name, command, log, env=None):
        self.name, self.command, self.log, self.env = name, [str(word) for word in command], log, env or {}
        self.child = None

    def start(self):
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                start_new_session=True,
            )
        return self

    def runs(self):
        return self.child is not None and self.child.poll() is None

    def kill(self):
        """Ends it without a chance to say goodbye."""
        if self.runs():
            self.child.kill()
            self.child.wait(10)

    def signal(self, number):
        if self.runs():
            self.child.send_signal(number)

    def stop(self, grace=45):
        """Asks it to end, and kills it when it does not. Returns whether it ended by itself."""
        if not self.runs():
            return True
        self.child.send_signal(signal.SIGCONT)
        self.child.terminate()
        try:
            self.child.wait(grace)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def lines(self):
        """Its log."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                return log.read().splitlines()
        except FileNotFoundError:
            return []
