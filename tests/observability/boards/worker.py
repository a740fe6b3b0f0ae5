"""Rug / Worker: leases, and the work on appliances."""

from boards.grafana import (
    BLUE,
    CLUSTER,
    GREEN,
    INSTANCE,
    JOBS,
    RED,
    YELLOW,
    Query,
    Row,
    dashboard,
    graph,
    per_minute,
    per_second,
    quantiles,
    stat,
    steps,
    variable,
)
from boards.process import process


def board():
    instance = variable("instance", "Worker", f"label_values(rug_appliances_held{{{CLUSTER}}}, instance)")
    lease = Row(
        "Lease and session",
        [
            stat("Appliances", "That the workers own.", f"sum(rug_appliances_held{{{INSTANCE}}})", width=4, steps=steps(BLUE)),
            stat(
                "Connected",
                "Share of the workers that have a session with the leader. Alert RugWorkerDisconnected.",
                f"avg(rug_session_connected{{{INSTANCE}}})",
                width=4,
                unit="percentunit",
                steps=steps(RED, (1, GREEN)),
            ),
            stat(
                "Least of a lease at its renewal",
                "In the worst twentieth of the renewals of the worst worker. 75 % is normal. Alert RugLeaseMarginThin: below 40 %.",
                f"min(instance:rug_lease_remaining:ratio_p5_10m{{{INSTANCE}}})",
                width=4,
                unit="percentunit",
                decimals=0,
                steps=steps(RED, (0.4, YELLOW), (0.5, GREEN)),
            ),
            stat(
                "Leases lost, in the time shown",
                "Lives that ended while the worker ran. Alert RugLeasesLost.",
                f"sum(increase(rug_lease_ends_total{{{INSTANCE}}}[$__range]))",
                width=4,
                decimals=0,
                steps=steps(GREEN, (0.5, YELLOW)),
            ),
            stat(
                "Steps refused by the gate",
                "In the time shown, because the lease was over, the grant was gone, or a fence delay had to pass.",
                f"sum(increase(rug_gate_refusals_total{{{INSTANCE}}}[$__range]))",
                width=4,
                decimals=0,
                steps=steps(GREEN, (0.5, YELLOW)),
            ),
            stat(
                "Steps that wait",
                "For one of those that run.",
                f"sum(rug_steps_waiting{{{INSTANCE}}})",
                width=4,
                steps=steps(GREEN, (1, YELLOW)),
            ),
            graph(
                "Appliances by worker",
                "Those whose grant it has.",
                Query(f"rug_appliances_held{{{INSTANCE}}}", "{{instance}}"),
                width=6,
                stack=True,
                least=0,
            ),
            graph(
                "Lease left when it is renewed",
                "In the worst twentieth of renewals, as a share of its length.",
                Query(f"instance:rug_lease_remaining:ratio_p5_10m{{{INSTANCE}}}", "{{instance}}"),
                unit="percentunit",
                width=6,
                least=0,
            ),
            graph(
                "Sessions",
                "1 while the leader has welcomed the worker.",
                Query(f"rug_session_connected{{{INSTANCE}}}", "{{instance}}"),
                width=6,
                least=0,
            ),
            graph(
                "Connections that failed",
                "A minute.",
                per_minute("rug_session_connects_total", "instance", f'{INSTANCE}, outcome="failed"', "{{instance}}"),
                width=6,
                least=0,
            ),
        ],
    )
    work = Row(
        "Work on appliances",
        [
            graph("Steps by outcome", "A second, probes not among them.", per_second("rug_step_duration_seconds_count", "step, outcome", INSTANCE, "{{step}}, {{outcome}}"), least=0),
            graph(
                "How long steps take",
                "9 of 10 are faster.",
                *quantiles("rug_step_duration_seconds", "step", INSTANCE, (0.9,), "{{step}}"),
                unit="s",
                least=0,
            ),
            graph(
                "Steps that did not succeed",
                "A second.",
                per_second(
                    "rug_step_duration_seconds_count", "step, outcome", f'{INSTANCE}, outcome=~"refused|failed|timed_out|fenced|vanished"', "{{step}}, {{outcome}}"
                ),
                least=0,
            ),
            graph("Probes by outcome", "A second.", per_second("rug_probe_duration_seconds_count", "outcome", INSTANCE, "{{outcome}}"), least=0),
            graph(
                "How long probes take",
                "Whatever their outcome.",
                *quantiles("rug_probe_duration_seconds", where=INSTANCE, shares=(0.5, 0.9, 0.99)),
                unit="s",
                least=0,
            ),
            graph(
                "Steps that run and wait",
                "`looks` only read, `changes` change something. Where as many run as may, more wait.",
                Query(f"sum by (pool) (rug_steps_running{{{INSTANCE}}})", "{{pool}} run"),
                Query(f"sum by (pool) (rug_steps_waiting{{{INSTANCE}}})", "{{pool}} wait"),
                least=0,
            ),
            graph("Grants", "A minute.", per_minute("rug_grants_total", "event", INSTANCE, "{{event}}"), width=6, least=0),
            graph("Gate", "Steps a minute that were not begun.", per_minute("rug_gate_refusals_total", "reason", INSTANCE, "{{reason}}"), width=6, least=0),
            graph(
                "Refused messages",
                "A minute: of another conversation, or for another version.",
                per_minute("rug_messages_stale_total", "message", f'{JOBS}worker"', "{{message}}"),
                width=6,
                least=0,
            ),
            graph(
                "Queues",
                "How full they are.",
                Query(f"rug_queue_depth{{{JOBS}worker\"}} / rug_queue_capacity{{{JOBS}worker\"}}", "{{queue}} {{instance}}"),
                unit="percentunit",
                width=6,
                least=0,
            ),
        ],
    )
    text = "Whether workers keep their leases and sessions, and what their work on appliances takes."
    return dashboard("rug-worker", "Rug / Worker", text, [lease, work, process("worker")], instance)
