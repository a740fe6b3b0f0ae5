"""A collector that is not ours: rotel, which takes OTLP over gRPC and HTTP, and what it passes on."""

import gzip
import http.server
import pathlib
import re
import threading

from processes import Failure, Process, wait


class Sink:
    """Where rotel sends what it took: an OTLP server over HTTP that keeps what is needed to tell what came."""

    def __init__(self, port, wanted):
        # signal -> texts of which something was seen in what came
        self.seen = {"traces": set(), "metrics": set(), "logs": set()}
        self.bytes = {"traces": 0, "metrics": 0, "logs": 0}
        self.wanted = wanted
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.take(self.path.rsplit("/", 1)[-1], body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, signal, body):
        if signal in self.seen:
            self.bytes[signal] += len(body)
            # Texts stand in protobuf as they are.
            self.seen[signal].update(text for text in self.wanted if text.encode() in body)

    def stop(self):
        self.server.shutdown()


def environment(name, grpc, http_endpoint):
    """What a process exports by: the coordinator over gRPC, workers over HTTP, the last of them compressed."""
    env = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_LOGS_EXPORTER": "otlp"}
    if name.startswith("coordinator"):
        return {**env, "OTEL_EXPORTER_OTLP_ENDPOINT": grpc, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": http_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    return {**env, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"} if name.endswith("3") else env


class Gateway:
    """An OpenTelemetry Collector with the configuration of the documentation, on ports of its own. It passes traces and logs on to rotel."""

    def __init__(self, binary, root, ports, rotel):
        root = pathlib.Path(root)
        root.mkdir(parents=True)
        text = (pathlib.Path(__file__).resolve().parents[2] / "docs/observability/collector.yaml").read_text(encoding="utf-8")
        for documented, port in zip((4317, 4318, 8889, 13133), ports, strict=True):
            text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{port}")
        (root / "collector.yaml").write_text(text, encoding="utf-8")
        self.grpc, self.http, self.metrics = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", ports[2]
        env = {"RUG_TRACES": rotel.grpc.removeprefix("http://"), "RUG_LOGS": rotel.http}
        self.process = Process("otelcol", [binary, "--config", root / "collector.yaml"], root / "otelcol.log", env)

    def environment(self, name):
        return environment(name, self.grpc, self.http)


class Rotel:
    """The collector, and what it passes on."""

    def __init__(self, binary, root, grpc, http_port, sink_port, expected):
        """`expected` are texts that are to come, by signal."""
        self.expected = expected
        root = pathlib.Path(root)
        root.mkdir(parents=True)
        self.sink = Sink(sink_port, {text for texts in expected.values() for text in texts})
        self.grpc, self.http = f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http_port}"
        words = ["start", "--pid-file", root / "rotel.pid", "--log-file", root / "rotel.file.log"]
        words += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"]
        words += ["--exporter", "otlp", "--otlp-exporter-endpoint", f"http://127.0.0.1:{sink_port}"]
        words += ["--otlp-exporter-protocol", "http"]
        self.process = Process("rotel", [binary, *words], root / "rotel.log")

    def start(self):
        self.process.start()

    def stop(self):
        self.process.stop(10)
        self.sink.stop()

    def environment(self, name):
        return environment(name, self.grpc, self.http)

    def complete(self):
        """Waits until all that is expected has come."""

        def missing():
            return {signal: sorted(set(texts) - self.sink.seen[signal]) for signal, texts in self.expected.items()}

        def nothing_missing():
            absent = {signal: texts for signal, texts in missing().items() if texts}
            if absent:
                raise Failure(f"not seen: {absent}")
            return True

        wait(60, "the collector passes on what was exported", nothing_missing, every=0.5)

    def complaints(self):
        """Lines of its log that are errors or warnings."""
        return [line for line in self.process.lines() if re.search(r"\b(ERROR|WARN)\b", line)]
