"""Which metrics and labels a PromQL expression names.

This is no parser: it splits an expression into words and knows where labels stand. What Prometheus would refuse is found by asking it.
"""

import re

WORDS = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
    |(?P<range>\[[^\]]*\])
    |(?P<number>(?:\d[\d.]*(?:[eE][+-]?\d+)?)(?:ms|[smhdwy])?(?:\d+(?:ms|[smhdwy]))*\b)
    |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    |(?P<other>=~|!~|!=|==|<=|>=|.)""",
    re.VERBOSE,
)

# Followed by labels in parentheses.
LABELS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "bool", "offset", "atan2", "start", "end", "inf", "nan"}

# Labels that come from Prometheus and its configuration rather than from a binary.
SCRAPED = {"job", "instance", "cluster", "le", "__name__"}


def words(expression):
    for found in WORDS.finditer(expression):
        kind = found.lastgroup
        if kind != "space":
            yield kind, found.group()


def named(expression):
    """Metrics that the expression names, each with the labels it selects by (label -> texts that are meant), and the labels it groups by."""
    tokens = list(words(expression))
    metrics, grouped = {}, set()
    at = 0
    while at < len(tokens):
        kind, word = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "name" and word.lower() in LABELS:
            if following == "(":
                end = next(i for i in range(at, len(tokens)) if tokens[i][1] == ")")
                grouped.update(w for k, w in tokens[at + 2 : end] if k == "name")
                at = end
        elif kind == "name" and following != "(" and following.lower() not in LABELS and word.lower() not in OPERATORS:
            labels = metrics.setdefault(word, {})
            if following == "{":
                end = next(i for i in range(at, len(tokens)) if tokens[i][1] == "}")
                for i in range(at + 2, end - 2):
                    if tokens[i][0] == "name" and tokens[i + 1][1] in ("=", "!=", "=~", "!~"):
                        labels.setdefault(tokens[i][1], set()).update(meant(tokens[i + 1][1], tokens[i + 2][1][1:-1]))
                at = end
        at += 1
    return metrics, grouped


def meant(operator, text):
    """The values that a selector spells out. Regular expressions are lists of words here, or `.*`."""
    texts = text.split("|") if "~" in operator else [text]
    return {text for text in texts if re.fullmatch(r"[\w.]+", text)}


def base_names(name):
    """A name, and that of the histogram it may be a part of."""
    yield name
    for end in ("_bucket", "_sum", "_count"):
        if name.endswith(end):
            yield name.removesuffix(end)
