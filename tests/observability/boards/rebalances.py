"""Rug / Rebalances: why appliances move, and what that costs them."""

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
    heat,
    per_minute,
    per_second,
    quantiles,
    stat,
    steps,
)


def board():
    moves = Row(
        "Rebalances and moves",
        [
            stat(
                "Rebalances, in the time shown",
                "Plans that were carried out.",
                f"sum(increase(rug_rebalance_duration_seconds_count{{{CLUSTER}}}[$__range]))",
                width=4,
                decimals=0,
                steps=steps(BLUE),
            ),
            stat(
                "Moves, in the time shown",
                "Appliances that changed their owner.",
                f'sum(increase(rug_moves_total{{{CLUSTER}, outcome="done"}}[$__range]))',
                width=4,
                decimals=0,
                steps=steps(BLUE),
            ),
            stat(
                "Given up, in the time shown",
                "Moves that did not take place: the plan changed, or a worker did not give up what it should.",
                f'sum(increase(rug_moves_total{{{CLUSTER}, outcome="given_up"}}[$__range]))',
                width=4,
                decimals=0,
                steps=steps(GREEN, (1, YELLOW)),
            ),
            stat("Under way", "Moves now.", f"sum(rug_moves_in_flight{{{CLUSTER}}})", width=4, steps=steps(BLUE)),
            stat(
                "Stalled",
                "Moves past their deadline. Alert RugMovesStalled: for 10 minutes.",
                f"sum(rug_moves_stalled{{{CLUSTER}}})",
                width=4,
                steps=steps(GREEN, (1, RED)),
            ),
            stat(
                "Hand-offs within 0.5 s",
                "In the time shown. Objective: 99 %.",
                f'sum(increase(rug_handoff_gap_seconds_bucket{{{CLUSTER}, le="0.5"}}[$__range]))'
                f" / sum(increase(rug_handoff_gap_seconds_count{{{CLUSTER}}}[$__range]))",
                width=4,
                unit="percentunit",
                decimals=2,
                steps=steps(RED, (0.99, GREEN)),
            ),
            graph(
                "Rebalances by cause",
                "A minute.",
                per_minute("rug_rebalance_duration_seconds_count", "cause, outcome", legend="{{cause}}, {{outcome}}"),
                least=0,
            ),
            graph(
                "Moves by cause and outcome",
                "A minute.",
                per_minute("rug_moves_total", "cause, outcome", legend="{{cause}}, {{outcome}}"),
                least=0,
            ),
            graph(
                "Under way and stalled",
                "Moves now, and what holds them: the brake, or an operator.",
                Query(f"sum(rug_moves_in_flight{{{CLUSTER}}})", "under way"),
                Query(f"sum(rug_moves_stalled{{{CLUSTER}}})", "stalled"),
                Query(f"max(rug_frozen{{{CLUSTER}}})", "frozen"),
                Query(f"max(rug_paused{{{CLUSTER}}})", "paused"),
                least=0,
            ),
        ],
    )
    durations = Row(
        "How long it takes",
        [
            heat(
                "Gap of hand-offs",
                "For how long appliances had no owner between two live workers. Points are exemplars: each leads to a trace.",
                f"sum by (le) (increase(rug_handoff_gap_seconds_bucket{{{CLUSTER}}}[$__rate_interval]))",
                width=12,
            ),
            graph(
                "Gap of hand-offs",
                "Alert RugHandoffsSlow: more than a tenth above 0.5 s.",
                *quantiles("rug_handoff_gap_seconds", shares=(0.5, 0.9, 0.99)),
                unit="s",
                width=12,
                least=0,
            ),
            graph(
                "Rebalances",
                "From the event that caused it to its last move, 9 of 10 are faster.",
                *quantiles("rug_rebalance_duration_seconds", "cause", shares=(0.9,), legend="{{cause}}"),
                unit="s",
                least=0,
            ),
            graph(
                "Without an owner",
                "By what came before, 9 of 10 are shorter. `lost`: the former owner died or left. The time until a dead worker is called gone is not in it.",
                *quantiles("rug_unowned_seconds", "after", shares=(0.9,), legend="after {{after}}"),
                unit="s",
                log=True,
            ),
            graph(
                "Plans",
                "Time of the leader's steps that made a plan.",
                *quantiles("rug_plan_duration_seconds", shares=(0.5, 0.99)),
                unit="s",
                least=0,
            ),
        ],
    )
    messages = Row(
        "Between leader and workers",
        [
            graph(
                "Plans made",
                "A second.",
                per_second("rug_plans_total", legend="plans"),
                width=6,
                least=0,
            ),
            graph(
                "Entries sent",
                "What deltas tell workers, a second.",
                per_second("rug_entries_sent_total", "entry", legend="{{entry}}"),
                width=6,
                least=0,
            ),
            graph("Size of a delta", "On the wire.", *quantiles("rug_delta_size_bytes"), unit="bytes", width=6, least=0),
            graph("Entries of a delta", "What one message tells a worker.", *quantiles("rug_delta_entries"), width=6, least=0),
            graph(
                "Acknowledgements",
                "From the sending of a delta until the worker has acknowledged it.",
                *quantiles("rug_ack_lag_seconds"),
                unit="s",
                least=0,
            ),
            graph(
                "Backlog",
                "Writes of ownership under way and to be tried again, entries that wait for a worker's window, appliances held against the table.",
                Query(f"sum by (of) (rug_backlog{{{CLUSTER}}})", "{{of}}"),
                least=0,
            ),
            graph(
                "Grants at workers",
                "A second. `fenced`: given up because the lease was over.",
                per_second("rug_grants_total", "event", legend="{{event}}"),
                least=0,
            ),
        ],
    )
    text = "Why appliances move, for how long they have no owner meanwhile, and where the time goes. One rebalance in full is its trace: `rugctl rebalance list` has the ids."
    return dashboard("rug-rebalances", "Rug / Rebalances", text, [moves, durations, messages])
