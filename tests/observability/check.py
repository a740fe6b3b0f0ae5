#!/usr/bin/env python3
"""Checks what is below docs/observability against real processes: `make test-observability`.

Without a cluster: rules and their unit tests (promtool), dashboards, runbooks. Then it starts a cluster, a Prometheus and a collector that is not
ours (rotel) on free ports of the loopback address, lets a fleet be well for a while and then everything go wrong, and checks that

- every query of every panel and every recording rule has data (or is listed in expected.py with the reason),
- every metric and label in a query, a rule or a series of a unit test is one that the binaries export,
- no alert is raised while the fleet is well; which are raised later by what really happened is printed,
- the collector gets traces, metrics and logs over gRPC and HTTP, and neither side complains.

  check.py --binaries target/release [--rotel FILE] [--otelcol FILE] [--calm SECONDS] [--pictures FOLDER] [--keep]
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

import documents
import load
from cluster import COORDINATOR, Cluster
from collector import Gateway, Rotel
from expected import EMPTY, LOGS, NOT_CALM, TOLERATED
from processes import Failure, free_ports
from prometheus import Prometheus, scrape_config
from queries import SCRAPED, base_names, named

WORKERS = 3


def say(text):
    print(f"--- {text}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", default="target/release", help="folder of rugctl, rug-coordinator and so on")
    parser.add_argument("--rotel", help="program of the collector; without it nothing is exported by OTLP")
    parser.add_argument("--otelcol", help="an OpenTelemetry Collector: Prometheus then has only what is pushed to it, with docs/observability/collector.yaml")
    parser.add_argument("--calm", type=int, default=60, help="for how many seconds the fleet is well")
    parser.add_argument("--pictures", help="draw the dashboards into this folder (needs matplotlib)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and data")
    parser.add_argument("--static", action="store_true", help="only what needs no cluster")
    return parser.parse_args()


def expected_signals(options):
    """Names of processes, spans and metrics that have to arrive, by signal."""
    names = {"rug-coordinator", "rug-worker", COORDINATOR, *(f"worker-{number}" for number in range(1, WORKERS + 1))}
    expected = {"traces": names | {"rebalance", "hand-off", "release", "adopt", "delta"}}
    if not options.otelcol:
        expected["metrics"] = names | {"rug.leader", "rug.lease.remaining"}
    if LOGS:
        expected["logs"] = names
    return expected


class Run:
    """What was started, and when what happened."""

    def __init__(self, options, root):
        self.options, self.root = options, pathlib.Path(root)
        ports = free_ports(WORKERS + 15)
        ports, gateway = ports[:-4], ports[-4:]
        # For appliances, and for a worker that is no member.
        *self.ports, self.astray = ports[WORKERS + 5 :]
        self.rotel = None
        if options.rotel:
            self.rotel = Rotel(options.rotel, self.root / "rotel", *ports[WORKERS + 2 : WORKERS + 5], expected_signals(options))
        self.gateway = Gateway(options.otelcol, self.root / "otelcol", gateway, self.rotel) if options.otelcol else None
        collector = self.gateway or self.rotel
        otlp = collector.environment if collector else lambda _: {}
        self.cluster = Cluster(pathlib.Path(options.binaries).resolve(), self.root / "cluster", ports[: WORKERS + 1], otlp)
        pushed = self.gateway.metrics if self.gateway else None
        config = scrape_config({**self.cluster.metrics, "worker-astray": self.astray}, documents.RULES, pushed)
        self.prometheus = Prometheus(self.root / "prometheus", ports[WORKERS + 1], config)
        self.calm = self.end = self.exporting = None
        self.start = time.time()

    def happen(self):
        """Starts everything and lets it all happen."""
        if self.rotel:
            self.rotel.start()
        if self.gateway:
            self.gateway.process.start()
        self.prometheus.start()
        say(f"a coordinator and {WORKERS} workers, logs in {self.root}/cluster/logs")
        self.cluster.start()
        self.start = time.time()
        say(f"a fleet that is well for {self.options.calm} s")
        self.calm = load.calm(self.cluster, self.ports, self.options.calm)
        load.moves(self.cluster, say)
        load.changes(self.cluster, say)
        load.failures(self.cluster, self.ports, say)
        load.pauses(self.cluster, say)
        load.store_lost(self.cluster, say)
        load.leaders(self.cluster, self.astray, say)
        if self.rotel:
            self.exported()
            say("end the collector")
            self.rotel.process.stop(10)
        load.suspended(self.cluster, say)
        self.end = time.time()

    def exported(self):
        """What the collector has to have got."""
        say("what the collector took")
        self.rotel.complete()
        self.exporting = time.time()
        print(f"    bytes by signal: {self.rotel.sink.bytes}")

    def stop(self):
        """Ends everything, whatever happens on the way."""
        parts = [self.cluster.stop, self.prometheus.stop]
        parts += [self.gateway.process.stop] if self.gateway else []
        parts += [self.rotel.stop] if self.rotel else []
        for part in parts:
            try:
                part()
            except (Failure, OSError, subprocess.SubprocessError) as error:
                print(f"    cannot be stopped: {error}")


def expanded(expression, run):
    """A query as Grafana sends it when everything is selected."""
    seconds = f"{int(run.end - run.start)}s"
    for name, value in (("$__rate_interval", "15s"), ("$__range", seconds), ("$cluster", ".*"), ("$instance", ".*"), ("$driver", ".*")):
        expression = expression.replace(name, value)
    return expression


def has_data(series):
    """Whether anything in an answer is a number."""
    return any(value != "NaN" for one in series for _, value in one.get("values") or [one["value"]])


def answer(run, expression):
    """Series of a panel's query over the whole run; where it looks back over the time shown, at its end."""
    query = expanded(expression, run)
    if "$__range" in expression:
        return run.prometheus.query(query, run.end)
    return run.prometheus.query_range(query, run.start, run.end)


def check_queries(run):
    """Every query of every panel."""
    problems, unused, asked = [], dict(EMPTY), 0
    for board in documents.dashboards():
        for panel in documents.panels(board):
            for target in panel["targets"]:
                asked += 1
                place = (board["title"], panel["title"], target["refId"])
                found = has_data(answer(run, target["expr"]))
                if unused.pop(place, None) is None and not found:
                    problems.append(f"{' > '.join(place)} has no data: {target['expr']}")
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(",", 1)
                if not any(label.strip() in one["metric"] for one in run.prometheus.query(f"last_over_time({expanded(metric, run)}[1h])", run.end)):
                    problems.append(f"{board['title']}: ${variable['name']} has no values")
    problems += [f"listed in expected.py and not there: {place}" for place in unused if isinstance(place, tuple)]
    print(f"    {asked} queries of panels")
    return problems


def check_names(run):
    """Every metric and label that is named anywhere, and every value of a label that is spelled out."""
    known, reference = run.prometheus.names(), documents.reference()
    recorded = {rule["name"] for rule in run.prometheus.rules() if rule["type"] == "recording"}
    problems = []

    def look(place, expression):
        metrics, grouped = named(expression)
        all_labels = set(SCRAPED)
        for metric, labels in metrics.items():
            if metric == "ALERTS" or metric in recorded:
                continue
            listed = next((reference[name] for name in base_names(metric) if name in reference), None)
            if metric not in known and listed is None:
                problems.append(f"{place}: no binary exports {metric}")
                continue
            found = known.get(metric, set()) | set(listed or {})
            all_labels |= found
            for label, values in labels.items():
                if label not in found | SCRAPED:
                    problems.append(f"{place}: {metric} has no label {label}")
                possible = (listed or {}).get(label)
                problems.extend(f"{place}: {metric} has no {label} {value}" for value in values if possible and value not in possible)
        for metric in set(metrics) & recorded:
            all_labels |= known.get(metric, set())
        problems.extend(f"{place}: no metric of it has the label {label}" for label in grouped - all_labels)

    for board in documents.dashboards():
        for panel in documents.panels(board):
            for target in panel["targets"]:
                look(f"{board['title']} > {panel['title']}", expanded(target["expr"], run))
    for rule in run.prometheus.rules():
        look(rule["name"], rule["query"])
    for file, series in documents.test_series():
        look(file, series)
    print(f"    {len(reference)} metrics in {documents.METRICS.name}" if reference else "    no list of metrics: only what was seen counts")
    return problems


def check_rules(run):
    """Rules in the real Prometheus: that they are evaluated, quiet while all is well, and what was raised later."""
    problems, raised = [], []
    fires, _ = documents.tested()
    for rule in run.prometheus.rules():
        if rule["health"] != "ok":
            problems.append(f"{rule['name']}: {rule.get('lastError', rule['health'])}")
        elif rule["type"] == "recording":
            found = has_data(run.prometheus.query_range(rule["name"], run.start, run.end))
            if not found and rule["name"] not in EMPTY:
                problems.append(f"{rule['name']} records nothing")
        else:
            well = run.prometheus.query_range(rule["query"], run.calm[0] + 5, run.calm[1], 1)
            if well and rule["name"] not in NOT_CALM:
                problems.append(f"{rule['name']} is raised while the fleet is well: {well[0]['metric']}")
            if run.prometheus.query_range(rule["query"], run.calm[1], run.end, 1):
                raised.append(rule["name"])
    others = [name for name in documents.alerts() if name not in raised]
    print(f"    raised by what really happened ({len(raised)}): {', '.join(raised)}")
    print(f"    fire in unit tests only ({len(others)}): {', '.join(others)}")
    problems += [f"{name} was raised neither here nor in a unit test" for name in others if name not in fires]
    return problems


def check_export(run):
    """That exporting went well on both sides."""
    problems = [f"rotel: {line}" for line in run.rotel.complaints()]
    seconds = int(run.exporting - run.start)
    lost = run.prometheus.query(f'sum by (instance, outcome) (max_over_time(rug_telemetry_spans_total{{outcome!="exported"}}[{seconds}s])) > 0', run.exporting)
    problems += [f"spans were lost: {one['metric']}, {one['value'][1]}" for one in lost]
    # Exemplars are not pushed.
    for metric in () if run.gateway else ("rug_handoff_gap_seconds_bucket", "rug_step_duration_seconds_bucket"):
        found = run.prometheus.get("query_exemplars", query=metric, start=run.start, end=run.end)
        if not any("trace_id" in one["labels"] for series in found for one in series["exemplars"]):
            problems.append(f"{metric} has no exemplar with a trace_id")
    return problems


def check_logs(run):
    """That no process logged an error which nothing here has caused."""
    errors = [(name, line) for name, line in run.cluster.logs() if line.split()[1:2] == ["ERROR"]]
    return [f"{name}: {line}" for name, line in errors if not any(text in line for text in TOLERATED)]


def main():
    options = arguments()
    say("rules, unit tests, runbooks, dashboards")
    problems = documents.check_rules() + documents.check_dashboards()
    print(f"    {len(documents.alerts())} alerts, {len(list(documents.dashboards()))} dashboards")
    if not options.static:
        root = tempfile.mkdtemp(prefix="rug-observability-", dir="/var/tmp")
        # Appliances may run as another user.
        pathlib.Path(root).chmod(0o755)
        run = Run(options, root)
        try:
            run.happen()
            say("every query against Prometheus")
            problems += check_queries(run) + check_names(run) + check_rules(run) + check_logs(run)
            if run.rotel:
                problems += check_export(run)
            if options.pictures:
                import pictures

                say(f"pictures into {options.pictures}")
                pictures.draw(run, options.pictures, answer)
        finally:
            run.stop()
            if options.keep or problems:
                print(f"    logs and data are kept in {root}")
            else:
                shutil.rmtree(root, ignore_errors=True)
    problems = list(dict.fromkeys(problems))
    for problem in problems:
        print(f"FAILED {problem}")
    print(f"{'FAILED' if problems else 'ok'}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"FAILED {failure}")
