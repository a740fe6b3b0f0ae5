"""A real Prometheus over the cluster, and its API."""

import json
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request

from processes import Failure, Process, wait

# Short, so that a check of some minutes has as many samples as an hour of a cluster.
INTERVAL = 1


class Prometheus:
    """One server, with its data in a temporary folder."""

    def __init__(self, root, port, config):
        self.url = f"http://127.0.0.1:{port}"
        root = pathlib.Path(root)
        root.mkdir(parents=True)
        file = root / "prometheus.yml"
        file.write_text(config, encoding="utf-8")
        words = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={root / 'data'}"]
        words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", "--enable-feature=exemplar-storage"]
        self.process = Process("prometheus", words, root / "prometheus.log")

    def start(self):
        self.process.start()

        def ready():
            if not self.process.runs():
                raise Failure(f"prometheus ended: {self.process.lines()[-5:]}")
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return answer.status == 200

        wait(30, "prometheus is ready", ready)

    def stop(self):
        self.process.stop(15)

    def get(self, path, **parameters):
        """Calls the API. An error of a query is a `Failure` with what Prometheus says."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = json.loads(error.read() or b"{}").get("error", str(error))
            raise Failure(f"{said}") from error

    def query(self, expression, at=None):
        """Series of an expression at one time."""
        return self.get("query", query=expression, time=at or time.time())["result"]

    def query_range(self, expression, start, end, step=None):
        """Series of an expression over a span of time."""
        step = step or max(1, (end - start) / 250)
        return self.get("query_range", query=expression, start=start, end=end, step=step)["result"]

    def names(self):
        """Labels of every metric that was scraped, without those that Prometheus adds."""
        found = {}
        for series in self.get("series", **{"match[]": '{__name__=~".+"}'}):
            name = series.pop("__name__")
            found.setdefault(name, set()).update(series)
        return found

    def rules(self):
        """Every rule, with its file, kind and health."""
        for group in self.get("rules")["groups"]:
            for rule in group["rules"]:
                yield {**rule, "group": group["name"]}


def scrape_config(metrics, rules, gateway=None):
    """A configuration that scrapes `/metrics` of the processes, with the labels of the one in the documentation; or what they push to a
    collector, at its port `gateway`."""
    targets = {"rug-coordinator": [], "rug-worker": []}
    for name, port in metrics.items():
        targets["rug-coordinator" if name.startswith("coordinator") else "rug-worker"].append((name, port))
    jobs = []
    for job, members in targets.items():
        statics = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"cluster": "check", "instance": name}} for name, port in members
        ]
        jobs.append({"job_name": job, "static_configs": statics})
    if gateway:
        statics = [{"targets": [f"127.0.0.1:{gateway}"], "labels": {"cluster": "check"}}]
        jobs = [{"job_name": "rug-collector", "honor_labels": True, "static_configs": statics}]
    config = {
        "global": {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"},
        "rule_files": [str(rule) for rule in rules],
        "scrape_configs": jobs,
    }
    # JSON is YAML.
    return json.dumps(config, indent=1)
