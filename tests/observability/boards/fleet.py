"""Rug / Fleet: whether appliances have owners and run."""

from boards.grafana import (
    BLUE,
    CLUSTER,
    GREEN,
    RED,
    YELLOW,
    Query,
    Row,
    dashboard,
    graph,
    per_minute,
    quantiles,
    stat,
    steps,
    table,
    words,
)


def board():
    now = Row(
        "Now",
        [
            stat(
                "Leaders",
                "Coordinators that say they lead. Alerts: RugNoLeader, RugSeveralLeaders.",
                f"sum(cluster:rug_leader:sum{{{CLUSTER}}})",
                steps=steps(RED, (1, GREEN)),
            ),
            stat("Appliances", "All that there are.", f"sum(rug_appliances{{{CLUSTER}}})", steps=steps(BLUE)),
            stat(
                "Without an owner",
                "Appliances that no worker looks after now.",
                f"sum(rug_unowned_appliances{{{CLUSTER}}})",
                steps=steps(GREEN, (1, YELLOW)),
            ),
            stat(
                "... the oldest for",
                "For how long the oldest of them has had no owner. Alert RugAppliancesUnowned: above 1 minute.",
                f"max(rug_unowned_oldest_seconds{{{CLUSTER}}})",
                unit="s",
                steps=steps(GREEN, (10, YELLOW), (60, RED)),
            ),
            stat(
                "Healthy workers",
                "Workers that have a lease and report.",
                f'sum(rug_workers{{{CLUSTER}, health="healthy"}})',
                steps=steps(RED, (1, GREEN)),
            ),
            stat(
                "Lost workers",
                "Workers that died within the last hour and are not back. Alert RugWorkersLost.",
                f'sum(rug_workers{{{CLUSTER}, health="dead"}})',
                steps=steps(GREEN, (1, YELLOW)),
            ),
            stat(
                "Placement",
                "Whether appliances are placed and moved. Alerts: RugFrozen, RugPausedForLong.",
                f"2 * max(rug_frozen{{{CLUSTER}}}) + max(rug_paused{{{CLUSTER}}})",
                mappings=words({0: ("goes on", GREEN), 1: ("paused", YELLOW), 2: ("frozen", RED), 3: ("frozen, paused", RED)}),
            ),
            stat(
                "Database",
                "Whether it takes changes. Alert RugStoreUnavailable.",
                f"min(rug_store_available{{{CLUSTER}}})",
                mappings=words({0: ("no changes", RED), 1: ("takes changes", GREEN)}),
            ),
        ],
    )
    objectives = Row(
        "Objectives",
        [
            stat(
                "Owned",
                "In the time shown, share of the time of all appliances in which they had an owner. Objective: 99.9 %. Time without a leader is not counted.",
                f"1 - sum(sum_over_time(cluster:rug_unowned_appliances:max{{{CLUSTER}}}[$__range]))"
                f" / sum(sum_over_time(cluster:rug_appliances:max{{{CLUSTER}}}[$__range]))",
                width=4,
                height=6,
                unit="percentunit",
                decimals=3,
                steps=steps(RED, (0.999, YELLOW), (0.9995, GREEN)),
            ),
            stat(
                "Hand-offs within 0.5 s",
                "In the time shown, share of moves between two live workers with a gap of at most 0.5 s. Objective: 99 %.",
                f'sum(increase(rug_handoff_gap_seconds_bucket{{{CLUSTER}, le="0.5"}}[$__range]))'
                f" / sum(increase(rug_handoff_gap_seconds_count{{{CLUSTER}}}[$__range]))",
                width=4,
                height=6,
                unit="percentunit",
                decimals=2,
                steps=steps(RED, (0.99, GREEN)),
            ),
            graph(
                "Burn rate of the ownership objective",
                "How many times faster than 30 days last the budget of 30 days is used up. Alert RugOwnershipBudgetBurnsFast: above 14.4 in 1 h, or 6 in 6 h.",
                Query(f"cluster:rug_unowned:ratio_rate5m{{{CLUSTER}}} / 0.001", "5 min {{cluster}}"),
                Query(f"cluster:rug_unowned:ratio_rate1h{{{CLUSTER}}} / 0.001", "1 h {{cluster}}"),
                Query(f"cluster:rug_unowned:ratio_rate6h{{{CLUSTER}}} / 0.001", "6 h {{cluster}}"),
                width=8,
                height=6,
                least=0,
            ),
            table(
                "Alerts that fire",
                "Of Rug, now. Each has a paragraph in runbooks.md.",
                Query(f'ALERTS{{{CLUSTER}, alertname=~"Rug.*", alertstate="firing"}}', instant=True, form="table"),
                {"alertname": "Alert", "severity": "Severity", "instance": "Instance", "cluster": "Cluster"},
                ["Time", "Value", "__name__", "alertstate", "job"],
                width=8,
                height=6,
            ),
        ],
    )
    appliances = Row(
        "Appliances",
        [
            graph(
                "By phase",
                "As their owners report. Alert RugAppliancesFail: phase Error for 10 minutes.",
                Query(f"sum by (phase) (rug_appliances_phases{{{CLUSTER}}}) > 0", "{{phase}}"),
                stack=True,
                least=0,
            ),
            graph(
                "By state of ownership",
                "As the leader's table has them. All but `owned` is on its way.",
                Query(f"sum by (state) (rug_appliances{{{CLUSTER}}}) > 0", "{{state}}"),
                stack=True,
                least=0,
            ),
            graph(
                "By kind and driver",
                "What they are, and what runs them.",
                Query(f"sum by (kind, driver) (rug_appliances_phases{{{CLUSTER}}}) > 0", "{{kind}} on {{driver}}"),
                stack=True,
                least=0,
            ),
            graph(
                "Without an owner",
                "Appliances that no worker looks after.",
                Query(f"sum(rug_unowned_appliances{{{CLUSTER}}})", "appliances"),
                width=6,
                least=0,
            ),
            graph(
                "The oldest of them",
                "For how long it has had no owner. Alert RugAppliancesUnowned: above 1 minute.",
                Query(f"max(rug_unowned_oldest_seconds{{{CLUSTER}}})", "without an owner"),
                unit="s",
                width=6,
                least=0,
            ),
            graph(
                "Need a look",
                "Quarantined: granted to no worker. Suspect: their former owner died while it owned them. Saturated: load balancers that have all the connections they may have.",
                Query(f"sum(rug_appliances_quarantined{{{CLUSTER}}})", "quarantined"),
                Query(f"sum(rug_appliances_suspect{{{CLUSTER}}})", "suspect"),
                Query(f"sum(rug_appliances_saturated{{{CLUSTER}}})", "saturated"),
                width=6,
                least=0,
            ),
            graph(
                "Probes without an answer",
                "Share of all probes, by kind. Alert RugProbesFail: above 10 % for 10 minutes.",
                Query(
                    f'sum by (kind) (rate(rug_probe_duration_seconds_count{{{CLUSTER}, outcome=~"silent|failed|timed_out"}}[$__rate_interval]))'
                    f" / sum by (kind) (rate(rug_probe_duration_seconds_count{{{CLUSTER}}}[$__rate_interval]))",
                    "{{kind}}",
                ),
                unit="percentunit",
                width=6,
                least=0,
            ),
        ],
    )
    workers = Row(
        "Workers and moves",
        [
            graph(
                "Workers",
                "Dead ones are shown for an hour, those that left for five minutes.",
                Query(f"sum by (health) (rug_workers{{{CLUSTER}}})", "{{health}}"),
                Query(f"sum(rug_workers_draining{{{CLUSTER}}})", "draining"),
                least=0,
            ),
            graph(
                "Moves by cause",
                "A minute. `gone` and `joined` come with workers, `drift` evens out, `draining` empties a worker that stops.",
                per_minute("rug_moves_total", "cause", legend="{{cause}}"),
                least=0,
            ),
            graph(
                "Gap of hand-offs",
                "For how long an appliance had no owner between two live workers.",
                *quantiles("rug_handoff_gap_seconds", shares=(0.5, 0.9, 0.99)),
                unit="s",
                least=0,
            ),
        ],
    )
    processes = Row(
        "Processes",
        [
            graph(
                "Versions",
                "Processes that are measured, by program and version. Two versions for long are an upgrade that was not finished.",
                Query(f"count by (job, version) (rug_build_info{{{CLUSTER}}})", "{{job}} {{version}}"),
                width=24,
                height=6,
                stack=True,
                least=0,
            ),
        ],
    )
    text = "Whether appliances have owners and run, and what stands in the way. Begin here; the others say why."
    return dashboard("rug-fleet", "Rug / Fleet", text, [now, objectives, appliances, workers, processes])
