"""Rug / Coordinator: leadership, database, clients, sessions."""

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
    instance = variable("instance", "Coordinator", f"label_values(rug_leader{{{CLUSTER}}}, instance)")
    leadership = Row(
        "Leadership",
        [
            stat(
                "Leads",
                "Which coordinator leads.",
                f"max by (instance) (rug_leader{{{INSTANCE}}}) == 1",
                legend="{{instance}}",
                text_mode="name",
                width=4,
            ),
            stat("Term", "Grows with each new leader.", f"max(rug_term{{{INSTANCE}}})", width=4, steps=steps(BLUE), unit="none"),
            stat("Coordinators", "That the leader knows, itself included.", f"max(rug_coordinators{{{INSTANCE}}})", width=4, steps=steps(BLUE)),
            stat("Streams", "Workers with a session.", f"sum(rug_streams{{{INSTANCE}}})", width=4, steps=steps(BLUE)),
            stat(
                "Violations, in the time shown",
                "What contradicted the leader's table. Alert RugOwnershipViolations.",
                f"sum(increase(rug_ownership_violations_total{{{INSTANCE}}}[$__range]))",
                width=4,
                decimals=0,
                steps=steps(GREEN, (0.5, RED)),
            ),
            stat(
                "Leader's task in use",
                "Everything the leader decides is done by one task. Alert RugLeaderOverloaded: above 80 % for 10 minutes.",
                f"max(rate(rug_leader_busy_seconds_total{{{INSTANCE}}}[$__rate_interval]))",
                width=4,
                unit="percentunit",
                decimals=1,
                steps=steps(GREEN, (0.5, YELLOW), (0.8, RED)),
            ),
            graph("Who leads", "1 for the one that does.", Query(f"rug_leader{{{INSTANCE}}}", "{{instance}}"), width=6, least=0),
            graph(
                "Elections and ends of terms",
                "A minute. Alert RugLeaderFlaps.",
                per_minute("rug_elections_total", "outcome", INSTANCE, "elected, {{outcome}}"),
                per_minute("rug_term_ends_total", "reason", INSTANCE, "ended, {{reason}}"),
                width=6,
                least=0,
            ),
            graph(
                "Beginning a term",
                "From being elected to leading, in which the store is read: the mean over the terms that the process has begun. They are few, so that rates say nothing.",
                Query(
                    f"rug_term_begin_duration_seconds_sum{{{INSTANCE}}} / rug_term_begin_duration_seconds_count{{{INSTANCE}}}",
                    "{{instance}}",
                ),
                unit="s",
                width=6,
                least=0,
            ),
            graph(
                "Leader's task",
                "Share of time in which it works, and inputs a second that had waited for more than a second.",
                Query(f"rate(rug_leader_busy_seconds_total{{{INSTANCE}}}[$__rate_interval])", "busy {{instance}}"),
                Query(f"rate(rug_leader_late_total{{{INSTANCE}}}[$__rate_interval])", "late {{instance}}"),
                width=6,
                least=0,
            ),
        ],
    )
    store = Row(
        "Database",
        [
            graph(
                "Writes",
                "From submission to answer, waiting included. Alert RugStoreSlow: p99 above 1 s.",
                *quantiles("rug_store_write_duration_seconds", where=INSTANCE, shares=(0.5, 0.9, 0.99)),
                unit="s",
                least=0,
            ),
            graph(
                "Transactions",
                "One commit, by what it is for.",
                *quantiles("rug_store_commit_duration_seconds", "work", INSTANCE, (0.99,), "{{work}}"),
                unit="s",
                least=0,
            ),
            graph(
                "Writes by outcome",
                "A second.",
                per_second("rug_store_write_duration_seconds_count", "outcome", INSTANCE, "{{outcome}}"),
                least=0,
            ),
            graph("Changes of a transaction", "How many are committed together.", *quantiles("rug_store_batch_changes", where=INSTANCE), width=6, least=0),
            graph(
                "Reads of history",
                "Of the history of rebalances and the audit trail.",
                *quantiles("rug_store_read_duration_seconds", where=INSTANCE),
                unit="s",
                width=6,
                least=0,
            ),
            graph(
                "Takes no changes because",
                "Alert RugStoreUnavailable.",
                Query(f"sum by (cause) (rug_store_problem{{{INSTANCE}}})", "{{cause}}"),
                width=6,
                least=0,
            ),
            graph(
                "Queues",
                "How full they are. A full one refuses what comes.",
                Query(f"rug_queue_depth{{{JOBS}coordinator\"}} / rug_queue_capacity{{{JOBS}coordinator\"}}", "{{queue}} {{instance}}"),
                per_second("rug_queue_refusals_total", "queue", INSTANCE, "refused a second: {{queue}}"),
                width=6,
                unit="percentunit",
                least=0,
            ),
        ],
    )
    calls = Row(
        "Clients",
        [
            graph("Calls by method", "A second.", per_second("rug_call_duration_seconds_count", "method", INSTANCE, "{{method}}"), least=0),
            graph(
                "Calls by code",
                "A second, without those that went well. Alert RugCallsFail looks at those that are the server's fault.",
                per_second("rug_call_duration_seconds_count", "code", f'{INSTANCE}, code!="OK"', "{{code}}"),
                least=0,
            ),
            graph(
                "Latency of calls",
                "Of streams, until the answer begins.",
                *quantiles("rug_call_duration_seconds", "method", INSTANCE, (0.99,), "{{method}}"),
                unit="s",
                least=0,
            ),
            graph(
                "Connections",
                "Share of those that are served at once.",
                Query(f"rug_connections{{{INSTANCE}}} / rug_connections_limit{{{INSTANCE}}}", "{{instance}}"),
                unit="percentunit",
                width=12,
                height=6,
                least=0,
            ),
            graph(
                "Refused connections",
                "A second. Alert RugConnectionsRefused.",
                per_second("rug_connections_refused_total", "reason", INSTANCE, "{{reason}}"),
                width=12,
                height=6,
                least=0,
            ),
        ],
    )
    sessions = Row(
        "Sessions of workers",
        [
            graph("Messages", "Of workers, a second.", per_second("rug_messages_received_total", "message", INSTANCE, "{{message}}"), width=6, least=0),
            graph(
                "Refused messages",
                "A second: they named another term, life or stream. Some are normal when a leader or a worker changes.",
                per_second("rug_messages_stale_total", "instance", f'{JOBS}coordinator"', "{{instance}}"),
                width=6,
                least=0,
            ),
            graph(
                "Ends of streams",
                "A minute.",
                per_minute("rug_streams_closed_total", "reason", INSTANCE, "{{reason}}"),
                Query(f"60 * sum(rate(rug_evictions_total{{{INSTANCE}}}[$__rate_interval]))", "evictions"),
                width=6,
                least=0,
            ),
            graph(
                "Audits",
                "Digests of what workers hold, a second. `differed` is a mistake in the program.",
                per_second("rug_ownership_audits_total", "outcome", INSTANCE, "{{outcome}}"),
                width=6,
                least=0,
            ),
            graph(
                "Violations by kind",
                "A minute.",
                Query(f"60 * sum by (kind) (rate(rug_ownership_violations_total{{{INSTANCE}}}[$__rate_interval]))", "{{kind}}"),
                width=24,
                height=6,
                least=0,
            ),
        ],
    )
    text = "Who leads, whether it keeps up, and what it waits for: the database, clients, workers."
    return dashboard("rug-coordinator", "Rug / Coordinator", text, [leadership, store, calls, sessions, process("coordinator")], instance)
