"""Child processes, free ports and waits with a deadline; what tests/observability has, under other names where a laboratory needs more."""

import importlib.util
import os
import pathlib
import signal
import subprocess

_SOURCE = pathlib.Path(__file__).resolve().parent.parent / "observability" / "processes.py"
_SPEC = importlib.util.spec_from_file_location("observability_processes", _SOURCE)
_SHARED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_SHARED)
Failure, Process, free_ports = _SHARED.Failure, _SHARED.Process, _SHARED.free_ports


class Ended(Exception):
    """A process that has to run has ended; waiting any longer is no use."""


def until(condition, seconds=30, what=None, every=0.1):
    """Returns the first true value of `condition`; raises `Failure` at the deadline, with what it last said."""
    return _SHARED.wait(seconds, what or getattr(condition, "__doc__", None) or "a condition", condition, every)


def run(command, env=None, given=None, timeout=120, check=True):
    """Runs a program and returns what it printed; raises `Failure` with its complaint when it fails."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, check=False)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(command)} took longer than {timeout} s") from late
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-4000:]}")
    return done.stdout if check else done


def terminate_on_signals():
    """Lets SIGTERM and SIGHUP unwind like Ctrl-C does, so that everything is stopped on the way out."""

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
