"""What every process uses, below the dashboards of coordinators and workers."""

from boards.grafana import JOBS, Query, Row, graph, per_second


def process(job):
    """What every process uses."""
    where = f'{JOBS}{job}"'
    return Row(
        "Process",
        [
            graph(
                "CPU",
                "Cores in use.",
                Query(f"rate(process_cpu_seconds_total{{{where}}}[$__rate_interval])", "{{instance}}"),
                width=6,
                least=0,
            ),
            graph(
                "Memory",
                "Resident memory.",
                Query(f"process_resident_memory_bytes{{{where}}}", "{{instance}}"),
                unit="bytes",
                width=6,
                least=0,
            ),
            graph(
                "Open files",
                "Share of the files that the process may have open. Alert RugFilesScarce: above 80 %.",
                Query(f"process_open_fds{{{where}}} / process_max_fds{{{where}}}", "{{instance}}"),
                unit="percentunit",
                width=6,
                least=0,
            ),
            graph(
                "Runtime in use",
                "Share of the time in which threads of the Tokio runtime work. Near 100 %, everything in the process waits.",
                Query(
                    f"rate(rug_runtime_busy_seconds_total{{{where}}}[$__rate_interval]) / rug_runtime_workers{{{where}}}",
                    "{{instance}}",
                ),
                unit="percentunit",
                width=6,
                least=0,
            ),
            graph(
                "Spans and log records",
                "What becomes of them, a second. `unsampled` is as the settings have it; `dropped`, `failed` and `undecided` are holes. Alert RugTelemetryDropped.",
                per_second("rug_telemetry_spans_total", "outcome", where, "spans {{outcome}}"),
                per_second("rug_telemetry_log_records_total", "outcome", where, "log records {{outcome}}"),
                width=12,
                height=6,
                least=0,
            ),
            graph(
                "Log lines left out",
                "A second, because too many of one kind came. Alert RugLogLinesSkipped.",
                per_second("rug_log_lines_skipped_total", "instance", where, "{{instance}}"),
                width=12,
                height=6,
                least=0,
            ),
        ],
    )
