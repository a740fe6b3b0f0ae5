"""Rug / Drivers: boots and calls of drivers."""

from boards.grafana import (
    BLUE,
    CLUSTER,
    DRIVER,
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
    variable,
)


def board():
    driver = variable("driver", "Driver", f"label_values(rug_driver_call_duration_seconds_count{{{CLUSTER}}}, driver)")
    ended = 'outcome=~"answered|failed|ended"'
    boots = Row(
        "Boots",
        [
            stat("Boots, in the time shown", "Begun.", f"sum(increase(rug_boot_attempts_total{{{DRIVER}}}[$__range]))", width=6, decimals=0, steps=steps(BLUE)),
            stat(
                "... that came up",
                "Share of boots that ended with an answered probe. Alert RugBootsFail: less than half.",
                f'sum(increase(rug_boot_duration_seconds_count{{{DRIVER}, outcome="answered"}}[$__range]))'
                f" / sum(increase(rug_boot_duration_seconds_count{{{DRIVER}, {ended}}}[$__range]))",
                width=6,
                unit="percentunit",
                decimals=1,
                steps=steps(RED, (0.5, YELLOW), (0.95, GREEN)),
            ),
            stat(
                "Calls that failed, in the time shown",
                "Share of all calls of drivers. Alert RugDriverCallsFail: above 10 %.",
                f'sum(increase(rug_driver_call_duration_seconds_count{{{DRIVER}, outcome="failed"}}[$__range]))'
                f" / sum(increase(rug_driver_call_duration_seconds_count{{{DRIVER}}}[$__range]))",
                width=6,
                unit="percentunit",
                decimals=2,
                steps=steps(GREEN, (0.01, YELLOW), (0.1, RED)),
            ),
            stat(
                "Appliances that do not come up",
                "Phase Error. Alert RugAppliancesFail.",
                f'sum(rug_appliances_phases{{{DRIVER}, phase="Error"}})',
                width=6,
                steps=steps(GREEN, (1, RED)),
            ),
            graph("Boots begun", "A minute.", per_minute("rug_boot_attempts_total", "kind, driver", DRIVER, "{{kind}} on {{driver}}"), least=0),
            graph("Boots by outcome", "A minute.", per_minute("rug_boot_duration_seconds_count", "driver, outcome", DRIVER, "{{driver}}, {{outcome}}"), least=0),
            graph(
                "Time to boot",
                "From its beginning to the first probe that is answered.",
                *quantiles("rug_boot_duration_seconds", "kind, driver", f'{DRIVER}, outcome="answered"', (0.5, 0.9), "{{kind}} on {{driver}}"),
                unit="s",
                least=0,
            ),
        ],
    )
    calls = Row(
        "Calls of drivers",
        [
            graph("Calls", "A second.", per_second("rug_driver_call_duration_seconds_count", "driver, call", DRIVER, "{{driver}}, {{call}}"), least=0),
            graph(
                "Calls without success",
                "A second. `busy` and `superseded` are normal while an appliance changes its owner.",
                per_second("rug_driver_call_duration_seconds_count", "driver, call, outcome", f'{DRIVER}, outcome!="ok"', "{{driver}}, {{call}}, {{outcome}}"),
                least=0,
            ),
            graph(
                "Latency",
                "99 of 100 are faster.",
                *quantiles("rug_driver_call_duration_seconds", "driver, call", DRIVER, (0.99,), "{{driver}}, {{call}}"),
                unit="s",
                least=0,
            ),
            graph(
                "Share that fails",
                "Alert RugDriverCallsFail: above 10 % for 10 minutes.",
                Query(
                    f'sum by (driver) (rate(rug_driver_call_duration_seconds_count{{{DRIVER}, outcome="failed"}}[$__rate_interval]))'
                    f" / sum by (driver) (rate(rug_driver_call_duration_seconds_count{{{DRIVER}}}[$__rate_interval]))",
                    "{{driver}}",
                ),
                unit="percentunit",
                width=12,
                least=0,
            ),
            heat(
                "Calls that change something",
                "How long calls take that start, plug or end instances.",
                f'sum by (le) (increase(rug_driver_call_duration_seconds_bucket{{{DRIVER}, call=~"ensure|attach|detach|destroy"}}[$__rate_interval]))',
                width=12,
            ),
        ],
    )
    health = Row(
        "Instances",
        [
            graph("Probes", "A second, by outcome.", per_second("rug_probe_duration_seconds_count", "driver, outcome", DRIVER, "{{driver}}, {{outcome}}"), least=0),
            graph(
                "Latency of probes",
                "99 of 100 are faster.",
                *quantiles("rug_probe_duration_seconds", "kind, driver", DRIVER, (0.99,), "{{kind}} on {{driver}}"),
                unit="s",
                least=0,
            ),
            graph("Phases", "Of appliances.", Query(f"sum by (driver, phase) (rug_appliances_phases{{{DRIVER}}}) > 0", "{{driver}}, {{phase}}"), stack=True, least=0),
        ],
    )
    text = "What drivers are asked to do, how long it takes them, and what fails."
    return dashboard("rug-drivers", "Rug / Drivers", text, [boots, calls, health], driver)
