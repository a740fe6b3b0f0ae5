"""What is below docs/observability, as far as it can be checked without a cluster."""

import json
import pathlib
import re
import subprocess

from processes import Failure

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "observability"
RULES = [DOCS / "prometheus" / "recording.yaml", DOCS / "prometheus" / "alerts.yaml"]
TESTS = sorted((ROOT / "tests" / "observability" / "rules").glob("*.yaml"))
RUNBOOKS = DOCS / "runbooks.md"
METRICS = DOCS / "metrics.md"


def tool(*words, cwd=None):
    """Runs a command, and fails with what it printed."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(str(word) for word in words)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def alerts():
    """Names of the alerts, in their order."""
    return re.findall(r"^ +- alert: (\w+)$", RULES[1].read_text(encoding="utf-8"), re.MULTILINE)


def tested():
    """Alerts that fire in a unit test, and those that are seen quiet in one."""
    fires, quiet = set(), set()
    for file in TESTS:
        text = file.read_text(encoding="utf-8")
        for name, rest in re.findall(r"alertname: (\w+)((?:\n(?! *- eval_time).*)*)", text):
            (fires if "exp_labels" in rest else quiet).add(name)
    return fires, quiet


def test_series():
    """Metrics of the unit tests with their labels."""
    for file in TESTS:
        for series in re.findall(r"- series: '?([^'\n]+)'?", file.read_text(encoding="utf-8")):
            yield file.name, series.strip()


def check_rules():
    """What promtool says, and that each alert has two tests and a paragraph."""
    tool("promtool", "check", "rules", *RULES)
    tool("promtool", "test", "rules", *TESTS)
    names, (fires, quiet) = alerts(), tested()
    headings = re.findall(r"^## (Rug\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    text = RULES[1].read_text(encoding="utf-8")
    problems = [f"{name} fires in no test" for name in names if name not in fires]
    problems += [f"{name} is seen quiet in no test" for name in names if name not in quiet]
    problems += [f"{name} has no paragraph in {RUNBOOKS.name}" for name in names if name not in headings]
    problems += [f"{RUNBOOKS.name} has a paragraph for {name}, which is no alert" for name in headings if name not in names]
    problems += [f"{name} does not lead to its paragraph" for name in names if f"runbooks.md#{name.lower()}\n" not in text]
    return problems


def dashboards():
    """Every dashboard as it is read by Grafana."""
    for file in sorted((DOCS / "dashboards").glob("*.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def panels(board):
    """Panels with queries."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def check_dashboards():
    """That they are those of the code, and that any Grafana can take them."""
    tool(ROOT / "tests" / "observability" / "dashboards", "--check")
    problems = []
    for board in dashboards():
        title, ids = board["title"], [panel["id"] for panel in board["panels"]]
        variables = {variable["name"] for variable in board["templating"]["list"]}
        if len(ids) != len(set(ids)):
            problems.append(f"{title}: two panels have one id")
        for place in sources(board):
            if place not in ({"type": "prometheus", "uid": "${datasource}"},):
                problems.append(f"{title}: a data source of its own: {place}")
        used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
        problems += [f"{title}: ${name} is no variable" for name in sorted(used - variables)]
        for panel in panels(board):
            if not panel["description"] or not panel["title"]:
                problems.append(f"{title}: panel {panel['id']} says nothing")
            x, width = panel["gridPos"]["x"], panel["gridPos"]["w"]
            if x + width > 24:
                problems.append(f"{title}: {panel['title']} is beyond the right edge")
    return problems


def sources(value):
    """Every data source that is named in a dashboard."""
    if isinstance(value, dict):
        if "datasource" in value:
            yield value["datasource"]
        for inner in value.values():
            yield from sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from sources(inner)


def reference():
    """Metrics from the generated reference: name -> label -> values, none where they are not listed. Empty while there is no reference."""
    found = {}
    row = re.compile(r"^\| `((?:rug|process)_\w+)` \| ([^|]*) \| ([^|]*) \|", re.MULTILINE)
    for name, kind, labels in row.findall(METRICS.read_text(encoding="utf-8") if METRICS.exists() else ""):
        known = found.setdefault(name, {})
        for label in labels.split(";"):
            match = re.match(r" *`(\w+)`(?::(.*))?", label)
            if match:
                # A list begins with its first value; words before it say that there are others.
                values = (match[2] or "").strip()
                known.setdefault(match[1], set()).update(re.findall(r"`([\w.]+)`", values) if values.startswith("`") else ())
        if kind.startswith("histogram"):
            bounds = re.findall(r"[\d.]+", kind)
            known["le"] = {"Inf", *bounds, *(f"{float(bound)}" for bound in bounds)}
    return found
