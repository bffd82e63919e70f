"""docs/metrics.md, made of what the code declares: `python -m tests.metrics_page` writes it."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from machinehub.metrics import Metrics, Spread
from tests.support import ROOT

PAGE = ROOT / "docs" / "metrics.md"
HEAD = """\
# Metrics

`GET /metrics` answers in Prometheus's text format, without a token: keep it from strangers by the proxy (deploy/nginx.conf does). Counters count from the hub's start. `deploy/alerts.yaml` has rules for Prometheus, `deploy/dashboard.json` a dashboard for Grafana; [operations.md](operations.md) says what to do when one fires.

This page is made of the code (`python -m tests.metrics_page`).

| metric | type | labels | |
| --- | --- | --- | --- |
"""


def page() -> str:
    metrics = Metrics()
    declared = {
        id(value): value for value in vars(metrics).values() if value is not metrics.registry
    }
    rows = []
    for metric in declared.values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (described,) = metric.describe()
            labels = metric._labelnames
        else:
            (described,) = metric.collect()
            labels = ()
        suffix = "_total" if described.type == "counter" else ""
        text = described.documentation
        if isinstance(metric, Spread):
            text += ". Buckets: " + ", ".join(f"{bound:g}" for bound in metric._bounds)
        named = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{described.name}{suffix}` | {described.type} | {named} | {text} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
