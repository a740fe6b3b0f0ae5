"""What may be as it is, each with the reason."""

import documents

# Whether the binaries export logs by OTLP, which is a setting then.
LOGS = "\nlogs = " in documents.ROOT.joinpath("docs", "configuration.md").read_text(encoding="utf-8")

# Queries that may be without data in a run that went as it should: (dashboard, panel, query) or a recording rule -> reason.
EMPTY = {
    ("Rug / Fleet", "Alerts that fire", "A"): "alerts wait for minutes before they fire; whether their expressions hold is checked one by one",
}

# Alerts whose expression holds while the fleet is well.
NOT_CALM = {}

# In log lines that are errors and have to come: the check causes them.
TOLERATED = (
    # The database is taken away for a while.
    "store",
    "database",
)
