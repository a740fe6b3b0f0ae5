"""What tests of the chart ask: rendered objects as dictionaries. Python reads no YAML by itself; Helm does."""

import copy
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

try:
    import control
except ImportError:
    control = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/rug"
VALUES = [None, *sorted(CHART.glob("values-*.yaml"))]
CONVERT = """{{- range splitList "\\n---\\n" (printf "\\n%s" .Values.text) }}{{ with fromYaml . }}
#JSON {{ toJson . }}{{ end }}{{ end }}
"""
DATABASE = {"store": {"existingSecret": {"name": "database"}}}


class Refused(Exception):
    """Helm refused: what it said."""


@functools.cache
def helm_of(version=4):
    """Helm of a major version: what `RUG_HELM` or `RUG_HELM3` name, the laboratory's, or that of the search path."""
    name = "helm" if version == 4 else "helm3"
    if named := os.environ.get("RUG_HELM" if version == 4 else "RUG_HELM3"):
        return named
    built = control.where(None) / name if control else None
    return str(built) if built and built.exists() else shutil.which(name)


def helm(*words, version=4, given=None):
    """Runs Helm without a cluster, and returns what it prints."""
    program = helm_of(version)
    if not program:
        raise FileNotFoundError(f"helm {version}")
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": "/nowhere"}
        done = subprocess.run([program, *words], input=given, capture_output=True, text=True, timeout=60, env=environment)
    if done.returncode:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def options(values=None, overrides=None):
    """Words that name a values file, and others over it."""
    words = ["--values", str(values)] if values else []
    for key, value in (overrides or {}).items():
        words += ["--set-json", f"{key}={json.dumps(value)}"]
    return words


def render(values=None, overrides=None, release="rug", namespace="rug", version=4):
    """Every object of the chart."""
    return copy.deepcopy(rendered(release, namespace, tuple(options(values, overrides)), version))


@functools.cache
def rendered(release, namespace, words, version):
    return parse(helm("template", release, str(CHART), "--namespace", namespace, *words, version=version))


def parse(text):
    """The objects of a file with several documents."""
    with tempfile.TemporaryDirectory() as folder:
        chart = pathlib.Path(folder)
        (chart / "templates").mkdir()
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: convert\nversion: 1.0.0\n")
        (chart / "templates/all.yaml").write_text(CONVERT)
        (chart / "text").write_text(text)
        lines = helm("template", "convert", folder, "--set-file", f"text={chart}/text").splitlines()
    return [json.loads(line.removeprefix("#JSON ")) for line in lines if line.startswith("#JSON ")]


def trimmed(thing):
    """The same without line ends at the end of texts: versions of Helm differ in whether a block of text keeps its last one."""
    if isinstance(thing, str):
        return thing.rstrip("\n")
    if isinstance(thing, dict):
        return {key: trimmed(value) for key, value in thing.items()}
    return [trimmed(one) for one in thing] if isinstance(thing, list) else thing


def named(objects, kind, name=None):
    """The one object of a kind, or of a kind and name."""
    found = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} objects {kind} {name or ''} of {[(one['kind'], one['metadata']['name']) for one in objects]}")
    return found[0]


def pods(objects):
    """(what has it, pod template) of everything that makes pods."""
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield where, {"metadata": one["metadata"], "spec": one["spec"]}
        elif one["kind"] == "CronJob":
            yield where, one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
            yield where, one["spec"]["template"]


def containers(template):
    """All containers of a pod."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def variable(container, name):
    """A variable of a container, or None."""
    return next((one for one in container.get("env", []) if one["name"] == name), None)


def seconds(text):
    """Seconds of a duration, as the chart's settings have it."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) *(ms|s|m|h|d)", text))
