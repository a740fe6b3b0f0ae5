"""The dashboards below docs/observability/dashboards, as code."""
