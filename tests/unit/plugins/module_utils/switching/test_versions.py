# SPDX-License-Identifier: MIT
"""What a version of vLLM can, and what the engine does on each for that."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import Refused
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    SLEEPING,
    STOPPED,
    Observation,
    make_plan,
)
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.server import Server
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.versions import Abilities, abilities

from tests import serverlib

from .conftest import Host

RELOADING_WAKE = [
    "POST /wake_up?tags=weights",
    "POST /collective_rpc",
    "POST /wake_up?tags=kv_cache",
    "POST /reset_prefix_cache",
]
REASON = "vLLM 0.20.2 answers held requests before its weights are reloaded, so that they are cut before each wake"


@pytest.mark.parametrize(
    ("versions", "able"),
    [
        (("0.11.0", "0.10.2"), Abilities(level_0_sleeps=True)),
        (("0.12.0", "0.12.0.post2", "0.16.0"), Abilities(door=True, level_0_sleeps=True)),
        (("0.17.0", "0.17.1", "0.20.2", "0.23.0+cu130"), Abilities(modes=True, reload_last=False)),
        (("0.24.0", "0.29.0"), Abilities(modes=True)),
        (("0.31.0", "0.32.0", "0.33.1rc1.dev12+g0a1b2c3", "1.0.0"), Abilities(modes=True, tells_half=True)),
        (("", "dev", "v0.32.0", "0", "0.99999999"), Abilities()),
    ],
)
def test_what_a_version_can(versions: tuple[str, ...], able: Abilities) -> None:
    for version in versions:
        assert abilities(version) == able, version


# ---- level 2 where what is held does not wait for the weights -----------------------------------


def planned(sleep_level: str, ram_gb: float, seen: Observation, wanted: str = ACTIVE) -> tuple[list[str], list[str]]:
    """The steps and warnings of a switch from a to b, or of a to another state."""
    models = [
        {"id": name, "model": f"org/{name}", "host_port": port, "weights_gb": 20, "sleep_level": level}
        for name, port, level in (("a", 8001, sleep_level), ("b", 8002, "1"))
    ]
    inventory = parse(models, {"available_ram_gb": ram_gb})
    observed = {"a": seen, "b": Observation(SLEEPING, level=1)}
    plan = make_plan(inventory, observed, inventory.find("b" if wanted == ACTIVE else "a"), wanted, 1000.0)
    return [str(step) for step in plan.steps], list(plan.warnings)


MIDDLE = Observation(ACTIVE, no_level_2=REASON)


def test_auto_takes_level_1_where_the_ram_allows_it() -> None:
    assert planned("auto", 200, MIDDLE) == (["drain a", "sleep a (level 1)", "wake b (level 1)", "verify b"], [])


def test_auto_stops_where_it_would_take_level_2() -> None:
    warning = f"a is stopped instead of put to sleep at level 2 (its sleep_level is auto): {REASON}"
    assert planned("auto", 0, MIDDLE) == (["drain a", "stop a", "wake b (level 1)", "verify b"], [warning])
    assert planned("auto", 0, MIDDLE, SLEEPING) == (["drain a", "stop a"], [warning])
    assert planned("auto", 0, Observation(ACTIVE)) == (
        ["drain a", "sleep a (level 2)", "wake b (level 1)", "verify b"],
        [],
    )


def test_level_2_by_name_is_taken_and_warned_of_once() -> None:
    steps, (warning,) = planned("2", 200, MIDDLE)
    assert steps == ["drain a", "sleep a (level 2)", "wake b (level 1)", "verify b"]
    assert warning.startswith(f"a sleeps at level 2 because of its sleep_level, although {REASON}; sleep_level auto ")


def test_one_that_is_loaded_to_sleep_is_stopped_where_that_was_not_known_before(host: Host) -> None:
    host.settings["available_ram_gb"] = 0
    host.declare("a", sleep_level="auto", standin={"version": "0.20.2"})
    result = host.switch("a", "sleeping")
    assert [step["action"] for step in result.steps] == ["start", "verify", "stop"]
    assert result.models["a"].state == STOPPED
    assert result.warnings == [f"a is stopped instead of put to sleep at level 2 (its sleep_level is auto): {REASON}"]
    assert host.states() == {"a": "stopped"}


@pytest.mark.parametrize("version", ["0.17.1", "0.20.2"])
def test_what_is_held_is_cut_before_a_wake_from_level_2_and_told(host: Host, version: str) -> None:
    host.declare("a", sleep_level="2", standin={"version": version})
    host.declare("b")
    host.up(a="active", b=1)
    assert len(host.switch("b").warnings) == 1
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(host.completion, "a", 5) for _turn in range(2)]
        host.wait_until(lambda: host.running("a") == 2, "a holds them")
        result = host.switch("a")
        assert [answer.result(60)["finish_reason"] for answer in held] == ["abort", "abort"]
    assert result.requests["cut"] == 2
    assert result.steps[-2]["requests"] == {"drained": 0, "parked": 0, "cut": 2}
    assert [call for call in host.changing_calls("a") if "completions" not in call][-5:] == [
        "POST /sleep?level=2&mode=abort",
        *RELOADING_WAKE,
    ]
    assert host.call("a", "GET", "/standin/state").json()["weights_right"] is True


def test_what_is_held_waits_for_the_weights_elsewhere(host: Host) -> None:
    host.declare("a", sleep_level="2", standin={"version": "0.29.0"})
    host.up(a=2)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(host.completion, "a", 5)
        host.wait_until(lambda: host.running("a") == 1, "a holds it")
        assert host.switch("a").requests["cut"] == 0
        assert held.result(60)["finish_reason"] == "length"


# ---- a reload that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.12.0", "0.16.0", "0.17.1", "0.20.2", "0.29.0", "0.32.0"])
def test_a_wake_whose_reload_failed_is_done_again_from_its_begin(host: Host, version: str) -> None:
    host.declare("a", sleep_level="2", standin={"version": version})
    host.up(a="active")
    right = host.completion("a")["text"]
    host.switch("a", "sleeping")
    host.fault("a", "/collective_rpc", "status_500")
    result = host.switch("a")
    assert host.completion("a")["text"] == right
    assert result.models["a"].state == ACTIVE
    assert "POST /wake_up" not in host.changing_calls("a")
    assert host.call("a", "GET", "/standin/state").json()["weights_right"] is True


# ---- an error behind a 200 ----------------------------------------------------------------------


@pytest.fixture
def dying() -> Iterator[serverlib.Server]:
    """A server whose completions end with the engine, and say so behind a 200."""
    with serverlib.start_standin("org/m", names=["m"], version="0.16.0") as running:
        yield running


def test_an_error_behind_a_200_is_what_it_says(dying: serverlib.Server) -> None:
    inventory = parse([{"id": "m", "model": "org/m", "host_port": dying.port, "weights_gb": 1}], {})
    server = Server(inventory.find("m"), inventory.switching)
    dying.call("POST", "/sleep")
    with pytest.raises(Refused, match="answered 200 with an error: EngineCore encountered an issue") as caught:
        server.prove()
    assert caught.value.status == 500
    server.close()
