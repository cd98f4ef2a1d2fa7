# SPDX-License-Identifier: MIT
"""The queries of the dashboard and of the alerting rules that the role lays down."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FILES = ROOT / "roles" / "model_manager" / "files"
DASHBOARD = FILES / "grafana-dashboard.json"
RULES = FILES / "alerts.yml"

# Where it is, the query, and the text whose placeholders are labels.
Query = tuple[str, str, str]


def panels() -> list[Query]:
    """The queries of all panels, as Grafana has them."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [
        (f"{panel['title']} {target['refId']}", target["expr"], target["legendFormat"])
        for panel in board["panels"]
        for target in panel["targets"]
    ]


def alerts() -> list[Query]:
    """The expressions of all alerting rules."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [
        (rule["alert"], rule["expr"], " ".join(rule["annotations"].values()))
        for group in groups
        for rule in group["rules"]
    ]


def as_prometheus_has_it(query: str) -> str:
    """A panel's query with Grafana's variables replaced: all hosts, and the last minute."""
    for variable in ("$__rate_interval", "$__range"):
        query = query.replace(variable, "1m")
    return query.replace("$instance", ".*").replace("$job", ".*")
