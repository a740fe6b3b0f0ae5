"""Panels and dashboards as Grafana reads them.

Every panel is one or more queries of Prometheus; what Grafana needs around them is added here. The data source is a variable of each dashboard,
and so is the cluster.
"""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CLUSTER = 'cluster=~"$cluster"'
INSTANCE = f'{CLUSTER}, instance=~"$instance"'
DRIVER = f'{CLUSTER}, driver=~"$driver"'
# With the program and a quotation mark after it. Pushed through a collector the name of the job is rug/rug-worker.
JOBS = f'{INSTANCE}, job=~".*rug-'

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


class Query:
    """One query of a panel and how its series are called."""

    def __init__(self, expression, legend="", instant=False, form="time_series", exemplars=False):
        self.expression, self.legend, self.instant, self.form, self.exemplars = expression, legend, instant, form, exemplars

    def json(self, reference):
        return {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": self.expression,
            "legendFormat": self.legend or "__auto",
            "refId": reference,
            "range": not self.instant,
            "instant": self.instant,
            "format": self.form,
            "exemplar": self.exemplars,
        }


class Panel:
    """One panel. `width` is of 24 columns."""

    def __init__(self, kind, title, text, queries, width, height, unit="short", **more):
        self.kind, self.title, self.text, self.queries = kind, title, text, queries
        self.width, self.height, self.unit, self.more = width, height, unit, more

    def json(self, number, x, y):
        defaults = {"unit": self.unit, **self.more.get("defaults", {})}
        if "steps" in self.more:
            defaults["thresholds"] = {"mode": "absolute", "steps": self.more["steps"]}
            defaults["color"] = {"mode": "thresholds"}
        if "mappings" in self.more:
            defaults["mappings"] = self.more["mappings"]
        if "decimals" in self.more:
            defaults["decimals"] = self.more["decimals"]
        panel = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": self.more.get("overrides", [])},
            "options": self.more.get("options", {}),
            "targets": [query.json(chr(ord("A") + at)) for at, query in enumerate(self.queries)],
        }
        if "transformations" in self.more:
            panel["transformations"] = self.more["transformations"]
        return panel


class Row:
    """A heading, with what stands below it."""

    def __init__(self, title, panels):
        self.title, self.panels = title, panels


def steps(*pairs):
    """Thresholds: a colour from the start, then (value, colour)."""
    return [{"color": pairs[0], "value": None}] + [{"color": colour, "value": value} for value, colour in pairs[1:]]


def words(names):
    """Texts in place of numbers: number -> (text, colour)."""
    options = {str(value): {"text": text, "color": colour, "index": at} for at, (value, (text, colour)) in enumerate(names.items())}
    return [{"type": "value", "options": options}]


def stat(title, text, expression, width=3, unit="short", height=4, **more):
    """One number, now."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": more.pop("graph", "none"),
        "textMode": more.pop("text_mode", "auto"),
        "justifyMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "orientation": "auto",
    }
    more.setdefault("steps", steps(GREEN))
    return Panel("stat", title, text, [Query(expression, more.pop("legend", ""))], width, height, unit, options=options, **more)


def graph(title, text, *queries, unit="short", width=8, height=8, stack=False, least=None, log=False):
    """Lines over time."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
    }
    if log:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}}
    if least is not None:
        defaults["min"] = least
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, text, list(queries), width, height, unit, defaults=defaults, options=options)


def heat(title, text, expression, width=8, height=8, unit="s"):
    """How a histogram changes over time."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange", "reverse": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
    }
    query = Query(expression, "{{le}}", form="heatmap", exemplars=True)
    return Panel("heatmap", title, text, [query], width, height, unit, options=options)


def table(title, text, query, rename, hidden, width=24, height=6):
    """The series of one query, now, with their labels as columns."""
    organize = {"id": "organize", "options": {"renameByName": rename, "excludeByName": dict.fromkeys(hidden, True)}}
    return Panel("table", title, text, [query], width, height, transformations=[organize], options={"showHeader": True, "frameIndex": 0, "cellHeight": "sm"})


def quantiles(name, by="", where=CLUSTER, shares=(0.5, 0.99), legend=""):
    """Quantiles of a histogram."""
    labels = ", ".join(["le"] + ([by] if by else []))
    for share in shares:
        expression = f"histogram_quantile({share}, sum by ({labels}) (rate({name}_bucket{{{where}}}[$__rate_interval])))"
        yield Query(expression, f"{legend} p{share * 100:g}".strip(), exemplars=True)


def per_second(name, by="", where=CLUSTER, legend=""):
    labels = f" by ({by})" if by else ""
    return Query(f"sum{labels} (rate({name}{{{where}}}[$__rate_interval]))", legend)


def per_minute(name, by="", where=CLUSTER, legend=""):
    labels = f" by ({by})" if by else ""
    return Query(f"60 * sum{labels} (rate({name}{{{where}}}[$__rate_interval]))", legend)


def variable(name, label, query):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Everything, and also where no series has this label.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


def dashboard(uid, title, text, rows, *variables, since="now-6h"):
    panels, y, number = [], 0, 1
    for row in rows:
        panels.append({"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        number, y, x, tallest = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.json(number, x, y))
            number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
        y += tallest
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        # Whichever Grafana has as its default.
        "current": {"selected": True, "text": "default", "value": "default"},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["rug"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 41,
        "version": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "annotations": {"list": [changes_of_leader()]},
        "links": [
            {
                "title": "Rug",
                "type": "dashboards",
                "tags": ["rug"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [source, variable("cluster", "Cluster", "label_values(rug_leader, cluster)"), *variables]},
        "panels": panels,
    }


def changes_of_leader():
    """Marks in every panel when a new term begins."""
    return {
        "name": "New leader",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "expr": f"changes(cluster:rug_term:max{{{CLUSTER}}}[1m]) > 0",
        "titleFormat": "New leader",
        "textFormat": "{{cluster}}",
        "step": "60s",
    }
