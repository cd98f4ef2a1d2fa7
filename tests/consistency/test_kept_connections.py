# SPDX-License-Identifier: MIT
"""Whoever keeps connections for the next request keeps them for a shorter time than the other end does."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import http_connection

from tests.serverlib import ROOT

GATEWAY = ROOT / "roles" / "model_gateway"
MANAGER = ROOT / "roles" / "model_manager" / "files" / "model_manager"
# A request on its way, and clocks that differ.
MARGIN_SECONDS = 1.0


def numbers(path: Path, pattern: str) -> list[float]:
    """The numbers that a file has in such places."""
    return [float(found) for found in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)]


def test_connections_to_servers() -> None:
    """By the engine and by the gateway: one number of vLLM's for both, and the bench compares what is alike."""
    most = http_connection.KEPT_SECONDS - MARGIN_SECONDS
    assert 0 < http_connection._IDLE_SECONDS <= most
    upstreams = re.findall(
        r"^    upstream \w+ \{(.*?)^    \}",
        (GATEWAY / "templates" / "nginx.conf.j2").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert len(upstreams) == 2
    kept = [re.findall(r"^ +keepalive_timeout (\d+)s;$", upstream, re.MULTILINE) for upstream in upstreams]
    assert all(len(each) == 1 and 0 < float(each[0]) <= most for each in kept), kept
    (compared,) = numbers(ROOT / "bench" / "gateway.py", r"upstream .*keepalive_timeout (\d+)s;")
    assert {float(each[0]) for each in kept} == {compared}


def test_connections_to_gateways_of_other_hosts() -> None:
    (there,) = numbers(GATEWAY / "templates" / "nginx.conf.j2", r"^    keepalive_timeout (\d+)s;$")
    (here,) = numbers(GATEWAY / "files" / "lua" / "gateway" / "servers.lua", r"^local KEEP_SECONDS = (\d+)$")
    assert here + MARGIN_SECONDS <= there
