# SPDX-License-Identifier: MIT
"""What a server tells of its drafts: as test_contract.py, with a server of its own.

Its drafts come of its texts, since a draft model would need a GPU; what a sleep makes of that one's weights is read
from vLLM's source (issue 52479).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import metrics

from tests.serverlib import Server, real_venv, start_real, start_standin

from .client import MODEL, Client
from .families import FAMILIES

SAID = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.fixture(scope="module", name="server")
def server_fixture(target: str) -> Iterator[Client]:
    """A server that speculates."""
    what, version = target.split("-")
    flags = ["--speculative-config", json.dumps(SAID)]
    server: Server
    if what == "real":
        server = start_real(real_venv(version), MODEL, names=[MODEL], flags=flags, max_model_len=512)
    else:
        holds = FAMILIES[version].modes and not FAMILIES[version].runs_half_awake
        server = start_standin(MODEL, flags=[*flags, *(["--enable-sleep-mode"] if holds else [])], version=version)
    with server:
        yield Client(server, FAMILIES[version])


def drafted(server: Client) -> metrics.Drafts:
    """What it tells, as the engine reads it."""
    told = metrics.drafts(server.get("/metrics").text)
    assert told is not None
    assert metrics.parse(server.get("/metrics").text).drafts
    return told


def test_it_counts_what_is_drafted_and_accepted_through_a_sleep(server: Client) -> None:
    assert drafted(server)[:2] == (0, 0)
    server.complete("a b a b a b a b", 32)
    server.until(lambda: drafted(server).drafted > 0)
    first = drafted(server)
    assert 0 <= first.accepted <= first.drafted
    server.post("/sleep?level=2").raise_for_status()
    assert drafted(server) == first
    for call in ("/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", "/reset_prefix_cache"):
        body = {"json": {"method": "reload_weights"}} if call == "/collective_rpc" else {}
        server.post(call, **body).raise_for_status()
    server.complete("a b a b a b a b", 32)
    server.until(lambda: drafted(server).drafted > first.drafted)
