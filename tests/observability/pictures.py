"""Draws dashboards from what Prometheus answers, panel by panel, where Grafana would put them.

This is no Grafana: it knows the kinds of panels that are used here, and draws them much the same way.
"""

import datetime
import io
import math
import pathlib

import matplotlib

matplotlib.use("Agg")

from matplotlib import dates
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from PIL import Image

import documents

# Pixels of one row of the grid, of the whole width, and dots per inch.
ROW, WIDTH, DPI = 30, 1500, 100
MARGIN = 8
COLOURS = {"green": "#37872d", "yellow": "#c99700", "red": "#c4162a", "blue": "#1f60c4"}
LINES = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300", "#447ebc", "#c15c17"]
# As many names as fit below a graph.
NAMES = 8


def draw(run, folder, answer):
    """A picture of each dashboard, from the series of `run`. `answer(run, query)` asks for those of one query."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 7, "axes.linewidth": 0.5, "font.family": "DejaVu Sans"})
    for board in documents.dashboards():
        file = folder / f"{board['uid']}.png"
        save(picture(board, lambda query: answer(run, query), run.start, run.end), file)
        print(f"    {file.name}: {file.stat().st_size // 1024} KiB")


def save(figure, file):
    """As a file that is small enough for a repository: 128 colours are enough for lines and text."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=DPI)
    plt.close(figure)
    memory.seek(0)
    image = Image.open(memory).convert("RGB")
    image.quantize(colors=128, dither=Image.Dither.NONE).save(file, optimize=True)


def picture(board, ask, start, end):
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * ROW + 40
    figure = plt.figure(figsize=(WIDTH / DPI, height / DPI), facecolor="#f4f5f5")
    figure.text(MARGIN / WIDTH, 1 - 22 / height, board["title"], fontsize=13, weight="bold")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * WIDTH / 24, 40 + place["y"] * ROW
        if panel["type"] == "row":
            figure.text((left + MARGIN) / WIDTH, 1 - (top + 20) / height, f"▾ {panel['title']}", fontsize=10)
            continue
        box = [left + 3, height - top - place["h"] * ROW + 3, place["w"] * WIDTH / 24 - 6, place["h"] * ROW - 6]
        frame = figure.add_axes([box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height], facecolor="white")
        frame.set_xticks([])
        frame.set_yticks([])
        for edge in frame.spines.values():
            edge.set_color("#d0d0d0")
        # A title that is too long is cut as Grafana does it.
        letters = int(box[2] / 6.4)
        title = panel["title"] if len(panel["title"]) <= letters else panel["title"][: letters - 1] + "…"
        frame.text(7 / box[2], 1 - 6 / box[3], title, va="top", fontsize=8, weight="bold", transform=frame.transAxes)
        series = [(target, one) for target in panel["targets"] for one in ask(target["expr"])]
        {"stat": stat, "table": table, "heatmap": heat}.get(panel["type"], graph)(figure, frame, box, height, panel, series, start, end)
    return figure


def inner(figure, box, height, left, bottom, top=26, right=12):
    """Axes within the frame of a panel."""
    sides = [(box[0] + left) / WIDTH, (box[1] + bottom) / height, (box[2] - left - right) / WIDTH, (box[3] - top - bottom) / height]
    return figure.add_axes(sides, facecolor="white")


def points(series):
    """Times and numbers of one series."""
    values = series.get("values") or [series["value"]]
    return [(float(at), float(value)) for at, value in values]


def name_of(target, series):
    """What Grafana makes of the legend."""
    legend, labels = target["legendFormat"], series["metric"]
    if legend == "__auto":
        return ", ".join(value for key, value in labels.items() if key != "__name__") or "value"
    for key, value in labels.items():
        legend = legend.replace("{{" + key + "}}", value)
    while "{{" in legend:
        legend = legend[: legend.index("{{")] + legend[legend.index("}}") + 2 :]
    return legend.strip()


def shown(value, unit, decimals=None):
    """A number with its unit."""
    if math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value * 100:.3g} %" if decimals is None else f"{value * 100:.{decimals}f} %"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    for size, name in ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")) if unit == "bytes" else ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if name == 'k' else size):.3g}{name}"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"


def stat(figure, frame, box, height, panel, series, start, end):
    defaults = panel["fieldConfig"]["defaults"]
    last = [(target, one, points(one)[-1][1]) for target, one in series]
    current = [each for each in last if points(each[1])[-1][0] >= end - 5] or last
    if not current:
        frame.text(0.5, 0.4, "No data", ha="center", va="center", fontsize=12, color="#888888", transform=frame.transAxes)
        return
    target, one, value = current[0]
    colour, text = "black", shown(value, defaults["unit"], defaults.get("decimals"))
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = COLOURS.get(step["color"], step["color"])
    for mapping in defaults.get("mappings", []):
        found = mapping["options"].get(f"{value:g}")
        if found:
            text, colour = found["text"], COLOURS.get(found["color"], found["color"])
    if panel["options"].get("textMode") == "name":
        text = name_of(target, one)
    size = min(20, box[2] / max(len(text), 4) * 0.95)
    frame.text(0.5, 0.42, text, ha="center", va="center", fontsize=size, color=colour, transform=frame.transAxes)


def graph(figure, frame, box, height, panel, series, start, end):
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    series = sorted(series, key=lambda each: -max((value for _, value in points(each[1]) if not math.isnan(value)), default=0))
    names = [name_of(target, one) for target, one in series]
    legend = [name if len(name) < 34 else name[:33] + "…" for name in names[:NAMES]]
    if len(names) > NAMES:
        legend.append(f"and {len(names) - NAMES} more")
    # As many columns as there is room for: 4.6 pixels a letter, and the line before it.
    columns = max(1, min(4, int(box[2] / (max(map(len, legend), default=1) * 4.6 + 34))))
    axes = inner(figure, box, height, 52, 22 + 11 * math.ceil(len(legend) / columns))
    if custom["stacking"]["mode"] == "normal":
        stack(axes, series, names)
    else:
        for at, (_, one) in enumerate(series):
            times, values = broken(points(one), (end - start) / 250)
            axes.plot(times, values, linewidth=1, color=LINES[at % len(LINES)])
    axes.set_xlim(date(start), date(end))
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
    else:
        low, high = axes.get_ylim()
        low = defaults.get("min", low)
        axes.set_ylim(low, low + (high - low) * 1.05 if high > low else low + 1)
        axes.yaxis.set_major_locator(plt.MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, defaults["unit"], None))
    axes.yaxis.set_minor_formatter("")
    clock(axes)
    if not series:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", color="#888888", transform=axes.transAxes)
    handles = [plt.Line2D([], [], color=LINES[at % len(LINES)], linewidth=2, alpha=0 if at == NAMES else 1) for at in range(len(legend))]
    style = {"frameon": False, "fontsize": 6, "handlelength": 1.2, "columnspacing": 1.2, "labelspacing": 0.25, "borderpad": 0}
    frame.legend(handles, legend, ncol=columns, loc="lower left", bbox_to_anchor=(0.01, 0.015), **style)


def stack(axes, series, names):
    """Areas one above the other, on the times of all of them."""
    times = sorted({at for _, one in series for at, _ in points(one)})
    rows = []
    for _, one in series:
        known = dict(points(one))
        rows.append([known.get(at, 0.0) for at in times])
    if rows:
        colours = [LINES[at % len(LINES)] for at in range(len(rows))]
        axes.stackplot([date(at) for at in times], rows, labels=names, colors=colours, alpha=0.55, linewidth=0)


def broken(values, step):
    """Times and numbers, with a hole where samples are missing."""
    times, numbers, before = [], [], None
    for at, value in values:
        if before is not None and at - before > 1.5 * max(step, 1):
            times.append(date(at - step / 2))
            numbers.append(math.nan)
        times.append(date(at))
        numbers.append(value)
        before = at
    return times, numbers


def heat(figure, frame, box, height, panel, series, start, end):
    rows = sorted(((float(one["metric"]["le"]), dict(points(one))) for _, one in series), key=lambda row: row[0])
    times = sorted({at for _, row in rows for at in row})
    axes = inner(figure, box, height, 52, 24)
    clock(axes)
    if len(rows) < 2 or len(times) < 2:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    # Buckets count all below them.
    cells = [[max(rows[i][1].get(at, 0) - (rows[i - 1][1].get(at, 0) if i else 0), 0) for at in times] for i in range(len(rows))]
    filled = [i for i, row in enumerate(cells) if any(value > 0.01 for value in row)]
    if not filled:
        return
    first, last = max(filled[0] - 1, 0), min(filled[-1] + 1, len(rows) - 1)
    grid = [[value if value > 0.01 else math.nan for value in row] for row in cells[first : last + 1]]
    axes.pcolormesh([date(at) for at in times], range(len(grid)), grid, cmap="Oranges", norm=LogNorm(vmin=0.1), shading="nearest")
    axes.set_yticks(range(len(grid)), [shown(rows[i][0], "s") if math.isfinite(rows[i][0]) else "more" for i in range(first, last + 1)], fontsize=6)
    axes.set_xlim(date(start), date(end))


def table(figure, frame, box, height, panel, series, start, end):
    options = panel["transformations"][0]["options"]
    hidden, titles = options["excludeByName"], options["renameByName"]
    columns = [label for label in titles if any(label in one["metric"] for _, one in series) and label not in hidden]
    if not series:
        frame.text(0.5, 0.45, "No data", ha="center", va="center", color="#888888", transform=frame.transAxes)
    for row, (_, one) in enumerate([(None, None), *series[:8]]):
        for at, label in enumerate(columns):
            text = titles[label] if row == 0 else one["metric"].get(label, "")
            weight = "bold" if row == 0 else "normal"
            # Names of alerts are long, what else stands in tables is short.
            left = 0.02 if at == 0 else 0.46 + (at - 1) * 0.53 / max(len(columns) - 1, 1)
            frame.text(left, 1 - (34 + 15 * row) / box[3], text, weight=weight, va="top", fontsize=7, transform=frame.transAxes)


def date(at):
    return dates.date2num(datetime.datetime.fromtimestamp(at, datetime.timezone.utc))


def clock(axes):
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=2, maxticks=7))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=6, length=2, width=0.5)
    axes.grid(True, linewidth=0.3, color="#dddddd")
    for edge in axes.spines.values():
        edge.set_visible(False)
