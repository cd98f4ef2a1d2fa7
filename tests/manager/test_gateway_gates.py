# SPDX-License-Identifier: MIT
"""The gates and the waiting room without servers: what holds whatever happens."""

from __future__ import annotations

import collections
import random
import time
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import options, plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation
from hypothesis import given, settings
from hypothesis import strategies as st
from model_manager import gateway_models, policy, view
from model_manager.config import Config
from model_manager.context import Context
from model_manager.events import Bus
from model_manager.gates import Gates
from model_manager.gateway_counts import Counts
from model_manager.gateway_models import rounded
from model_manager.history import History
from model_manager.host_state import HostState
from model_manager.schedule import Schedule
from model_manager.tickets import FAILED, Ticket, UnknownModel
from model_manager.waiters import KEY_DEPTH, Line, Waiter
from model_manager.waiting_room import WaitingRoom

GPUS = {"a": [0], "b": [0], "c": [1], "d": [0, 1]}
NAMES = tuple(GPUS)


def inventory() -> Inventory:
    return parse([{"id": name, "model": f"org/{name}", "host_port": 8000 + i, "gpus": GPUS[name]}
                  for i, name in enumerate(GPUS)])  # fmt: skip


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Link:
    """A worker that notes what it is told."""

    def __init__(self, store: str = "") -> None:
        self.store = store
        self.told: list[Any] = []

    def send(self, message: Any) -> None:
        self.told.append(message)

    def of(self, kind: str) -> list[Any]:
        return [one for one in self.told if isinstance(one, dict) and one["t"] == kind]


def built(clock: Clock) -> tuple[HostState, Schedule, Gates]:
    config = Config("/nowhere", gateway_listen="127.0.0.1:1")
    host = HostState(inventory(), {}, clock, clock)
    schedule = Schedule(config, host, clock)
    return host, schedule, Gates(host, schedule, clock())


OBSERVATIONS = st.sampled_from(
    [
        Observation(plan.ACTIVE),
        Observation(plan.ACTIVE, doubtful=True),
        Observation(plan.ACTIVE, held=True),
        Observation(plan.SLEEPING, level=1),
        Observation(plan.SLEEPING, level=0),
        Observation(plan.STOPPED),
        Observation(plan.LOADING),
        Observation(plan.ERROR, dead=True),
        Observation(plan.ERROR, unknown=True),
    ]
)
HOLDERS = {
    ("a",): {"a", "b", "d", "c"},  # by d all hang together
    ("nobody",): set(NAMES),
    ("c", "nobody"): set(NAMES),
    (): set(NAMES),
}
STEPS = st.one_of(
    st.tuples(st.just("observe"), st.sampled_from(NAMES), OBSERVATIONS),
    st.tuples(st.just("step"), st.sampled_from(NAMES), st.sampled_from([view.WAKING, view.ASLEEP, view.READY, ""])),
    st.tuples(st.just("close"), st.sets(st.sampled_from(NAMES)), st.none()),
    st.tuples(st.just("reopen"), st.sets(st.sampled_from(NAMES)), st.booleans()),
    st.tuples(st.just("foreign"), st.sampled_from(sorted(HOLDERS)), st.none()),
    st.tuples(st.just("hold"), st.sampled_from(sorted(HOLDERS)), st.none()),
    st.tuples(st.just("free"), st.none(), st.none()),
    st.tuples(st.just("looked"), st.none(), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_no_gate_is_open_for_a_model_that_is_not_awake_or_is_being_switched(steps: list[tuple[str, Any, Any]]) -> None:
    host, _schedule, gates = built(Clock())
    host.seen = dict.fromkeys(NAMES, Observation(plan.STOPPED))
    own: set[str] = set()
    others: set[str] = set()
    held: set[str] = set()
    before: set[str] = set()
    version = gates.version
    for kind, first, second in steps:
        if kind == "observe":
            host.seen[first] = second
        elif kind == "step":
            host.moving.pop(first, None)
            if second:
                host.moving[first] = second, None
        elif kind == "close":
            own = set(first)
            gates.close(first)
        elif kind == "reopen":
            others = (others | own if second else others) - first
            own = set()
            gates.reopen(first, second)
        elif kind == "foreign":
            others |= HOLDERS[first]
            host.lock_holder = "somebody" if first else ""
            gates.foreign(first)
        elif kind == "hold":
            others |= held - (HOLDERS[first] if first else set())
            held = HOLDERS[first] if first else set()
            gates.hold(first)
        elif kind == "free":
            host.lock_holder = ""
        elif kind == "looked":
            others = others if host.lock_holder else set()
            gates.looked()
        changed = gates.look()
        for name in gates.open:
            seen = host.seen[name]
            awake = seen.state == plan.ACTIVE and not seen.held and not seen.doubtful
            assert awake or (seen.unknown and name in before)
            assert name not in own | others | held
            assert host.moving.get(name, (view.READY, None))[0] == view.READY
        for name in set(NAMES) - own - others - held - set(host.moving):
            seen = host.seen[name]
            if seen.state == plan.ACTIVE and not seen.held and not seen.doubtful:
                assert name in gates.open, "nor is one closed without a reason"
        assert (gates.version > version) == changed
        assert changed or gates.open == before
        before, version = set(gates.open), gates.version


def test_who_else_switches_concerns_those_that_it_names_and_their_rivals() -> None:
    host, _schedule, gates = built(Clock())
    host.inventory = Inventory(tuple(m for m in host.inventory.models if m.id != "d"), host.inventory.switching)
    host.seen = dict.fromkeys("abc", Observation(plan.ACTIVE))
    gates.look()
    assert gates.open == set("abc")
    gates.foreign(["a"])
    gates.look()
    assert gates.open == {"c"}
    gates.looked()
    gates.look()
    assert gates.open == set("abc")


def test_who_follows_at_once_opens_no_gate_that_the_one_before_has_closed() -> None:
    """Nobody has seen that the first one has let go; what it has done is seen by the next look."""
    host, _schedule, gates = built(Clock())
    host.inventory = Inventory(tuple(m for m in host.inventory.models if m.id != "d"), host.inventory.switching)
    host.seen = dict.fromkeys("abc", Observation(plan.ACTIVE))
    for names, still_open in ((["a", "b"], {"c"}), (["c"], set()), ([], set())):
        gates.hold(names)
        gates.look()
        assert gates.open == still_open
        assert gates.is_doubtful("a")
    gates.looked()
    gates.look()
    assert gates.open == set("abc")


# The waiting room.


class Room:
    """A waiting room whose tickets nobody serves but the test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.host, self.schedule, self.gates = built(self.clock)
        self.host.seen = dict.fromkeys(NAMES, Observation(plan.SLEEPING, level=1))
        self.gates.look()
        config = Config("/nowhere", gateway_listen="127.0.0.1:1")
        context = Context(config, History(":memory:"), Bus(), self.clock, self.clock, None)  # type: ignore[arg-type]
        self.room = WaitingRoom(context, self.gates, self.schedule, {}, self.request, self.find)
        self.tickets: list[Ticket] = []

    def find(self, name: str) -> Any:
        for model in self.host.inventory.models:
            if model.id == name:
                return model
        raise UnknownModel(f"model not found: {name}")

    def request(self, model: str, by: str) -> Ticket:
        for ticket in self.schedule.waiting:
            if ticket.model == model:
                ticket.waiters += 1
                return ticket
        ticket = Ticket(model, plan.ACTIVE, None, by, False, self.clock(), self.withdraw, lambda _one: (1, 2.0))
        self.schedule.waiting.append(ticket)
        self.tickets.append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        ticket.waiters = max(0, ticket.waiters - 1)
        if not ticket.waiters and ticket in self.schedule.waiting:
            self.schedule.waiting.remove(ticket)
            self.end(ticket, "Withdrawn")
            return True
        return False

    def end(self, ticket: Ticket, error: str = "") -> None:
        ticket.status = FAILED if error else "done"
        ticket.error = {"message": error, "kind": error, "remedy": ""} if error else None
        self.room.ended(ticket)


ACTS = ("wait", "wait", "wait", "gone", "entered", "lost", "open", "close", "failed", "others", "leave", "later")


@pytest.mark.parametrize("seed", range(25))
def test_everybody_who_waits_gets_one_answer_and_tickets_count_them(seed: int) -> None:
    chance = random.Random(seed)
    it = Room()
    links: list[Link] = []
    waiting: dict[tuple[Link, int], str] = {}
    others: collections.Counter[str] = collections.Counter()
    answered: collections.Counter[tuple[Link, int]] = collections.Counter()
    read: dict[Link, int] = {}
    numbers = iter(range(1, 10**6))
    for _step in range(400):
        if len(links) < 3:
            links.append(Link())
            it.room.connected(links[-1])
        act, link, model = chance.choice(ACTS), chance.choice(links), chance.choice(NAMES)
        if act == "wait":
            number = next(numbers)
            waiting[link, number] = model
            it.room.wait(link, {"id": number, "model": model, "key": chance.choice("xy"), "waited": chance.random()})
        elif act in ("gone", "entered"):
            mine = [key for key in waiting if key[0] is link]
            number = chance.choice(mine)[1] if mine else 0
            waiting.pop((link, number), None)
            it.room.gone(link, number)
        elif act == "lost" and chance.random() < 0.2:
            waiting = {key: one for key, one in waiting.items() if key[0] is not link}
            links.remove(link)
            it.room.lost(link)
        elif act in ("open", "close"):
            it.host.seen[model] = Observation(plan.ACTIVE) if act == "open" else Observation(plan.STOPPED)
            it.gates.look()
        elif act == "failed" and it.schedule.waiting:
            ticket = it.schedule.waiting.pop(chance.randrange(len(it.schedule.waiting)))
            others.pop(ticket.model, None)
            it.end(ticket, "SwitchFailed")
        elif act == "others":
            it.request(model, "HTTP")
            others[model] += 1
        elif act == "leave" and others[model]:
            others[model] -= 1
            next(one for one in it.schedule.waiting if one.model == model).cancel()
        elif act == "later":
            it.clock.now += chance.random()
        it.room.settle(whole=True)
        for one in links:
            for said in one.told[read.get(one, 0) :]:
                if said["t"] in ("go", "refuse"):
                    answered[one, said["id"]] += 1
                    if said["t"] == "go":
                        assert waiting[one, said["id"]] in it.gates.open
                    del waiting[one, said["id"]]
            read[one] = len(one.told)
        left = collections.Counter(waiting.values())
        tickets = {ticket.model: ticket for ticket in it.schedule.waiting}
        for name in NAMES:
            assert it.room.waiting(name) == left[name]
            if left[name]:
                assert name not in it.gates.open
            count = tickets[name].waiters if name in tickets else 0
            assert count == left[name] + others[name]
    assert max(answered.values()) == 1
    assert len(answered) > 20


def test_who_comes_while_a_switch_is_called_off_is_not_refused() -> None:
    it, link = Room(), Link()
    it.room.connected(link)
    it.room.wait(link, {"id": 1, "model": "a", "key": ""})
    it.room.settle()
    (first,) = it.tickets
    it.schedule.waiting.clear()
    it.end(first, "Withdrawn")
    it.room.settle(whole=True)
    assert [said["t"] for said in link.told if said["t"] in ("go", "refuse")] == []
    assert len(it.tickets) == 2 and it.tickets[1].waiters == 1
    it.schedule.waiting.clear()
    it.end(it.tickets[1], "SwitchFailed")
    assert link.told[-1]["t"] == "refuse"


def test_a_waiter_that_comes_again_is_the_oldest() -> None:
    it = Room()
    link = Link()
    it.room.connected(link)
    for number, waited in ((1, 0.0), (2, 50.0), (3, 10.0)):
        it.room.wait(link, {"id": number, "model": "a", "waited": waited})
    it.room.settle()
    (ticket,) = it.schedule.waiting
    assert (ticket.waiters, ticket.asked_at) == (3, 950.0)
    it.room.gone(link, 2)
    it.room.settle()
    assert (ticket.waiters, ticket.asked_at) == (2, 990.0)
    it.host.seen["a"] = Observation(plan.ACTIVE)
    it.gates.look()
    it.room.settle(whole=True)
    assert [one["id"] for one in link.of("go")] == [3, 1]
    assert it.schedule.waiting == []
    assert it.room.entering("a") == 2
    it.room.gone(link, 3)
    assert it.room.entering("a") == 1
    it.clock.now += 1
    assert it.room.entering("a") == 0


def test_a_line_counts_each_key_to_its_bound_and_forgets_who_left() -> None:
    line, link = Line("a"), Link()
    waiters = [Waiter(link, number, "a", "k" if number < 30 else "", float(number)) for number in range(5000)]
    for waiter in waiters:
        line.add(waiter)
    assert line.uncounted == 30 - KEY_DEPTH + 4970 - KEY_DEPTH
    for waiter in waiters[:-1]:
        line.remove(waiter)
    assert (line.uncounted, line.oldest(), line.first(), len(line)) == (0, 4999.0, 5000, 1)
    assert len(line._by_age) < 200
    line.remove(waiters[-1])
    assert (line.oldest(), line.first(), line.links) == (None, None, {})


def test_the_policy_sees_how_many_count(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Room()
    link = Link()
    it.room.connected(link)
    for number in range(30):
        it.room.wait(link, {"id": number, "model": "a", "key": "greedy" if number < 25 else f"other{number}"})
    it.room.wait(link, {"id": 99, "model": "b"})
    it.room.settle()
    seen: list[policy.Situation] = []

    def decide(_policy: str, situation: policy.Situation) -> policy.Decision:
        seen.append(situation)
        return policy.Decision(None)

    monkeypatch.setattr(policy, "decide", decide)
    it.schedule.next()
    assert {one.model: one.depth for one in seen[0].waiting} == {"a": KEY_DEPTH + 5, "b": 1}
    assert seen[0].settings.rest_seconds == 0.5


def test_counts_of_two_stores_are_added_and_those_that_are_old_are_none() -> None:
    clock = Clock()
    counts = Counts(clock)
    assert counts.of("a") is None
    one, other = Link("x"), Link("y")
    for link in (one, other):
        counts.connected(link)
    counts.ask(clock())
    counts.told(one, {"version": [5, 1], "counts": {"a": {"in_flight": 2, "idle_seconds": 0}}})
    assert counts.of("a") is None
    counts.told(
        other,
        {
            "version": [5, 2],
            "counts": {"a": {"in_flight": 0, "idle_seconds": 3.0}, "b": {"in_flight": 0, "idle_seconds": 1}},
        },
    )
    assert counts.of("a") == (2, 0.0)
    clock.now += 2
    assert counts.of("b") == (0, 3.0)
    assert counts.of("c") == (0, None)
    assert (counts.left(["a", "b"]), counts.left(["a"], (5, 1)), counts.left(["a"], (5, 2))) == (2, 2, None)
    assert counts.left(["a"], (4, 9)) is None, "that of a manager before says nothing"
    counts.lost(one)
    assert counts.of("a") == (0, 5.0)
    clock.now += 10
    assert counts.of("a") is None
    counts.told(other, {"version": [5, 2], "counts": []})
    assert counts.of("a") == (0, None)
    for wrong in ({"in_flight": -1}, {"in_flight": True}, {"in_flight": 1.5}, {"in_flight": 0, "idle_seconds": "x"}, 7):
        with pytest.raises((ValueError, TypeError, KeyError)):
            counts.told(other, {"version": [5, 2], "counts": {"a": wrong}})


def test_a_worker_that_does_not_answer_is_not_asked_again_before_the_others() -> None:
    clock = Clock()
    counts = Counts(clock)
    links = [Link(), Link()]
    for link in links:
        counts.connected(link)
    for _each in range(4):
        counts.ask(clock())
        clock.now += 0.1
    assert [len(link.told) for link in links] == [1, 1]


# What is shown.


@pytest.mark.parametrize(
    ("eta", "shown"), [(None, None), (0.0, 0), (0.2, 1), (5.1, 7), (61, 90), (5000, 5400), (float("inf"), None)]
)
def test_times_are_shown_in_steps(eta: float | None, shown: int | None) -> None:
    assert rounded(eta) == shown


@pytest.mark.parametrize(
    "given",
    [
        ["one=/x", "two=/y"],
        [{"name": "one", "path": "/x"}, {"name": "two", "path": "/y"}],
        ['{"name": "one", "path": "/x"}', "two=/y", "{broken", {"path": "/z"}, 7],
    ],
)
def test_adapters_are_read_however_they_are_written(given: Any) -> None:
    (model,) = parse([{"id": "a", "model": "org/a", "host_port": 8000, "args": {"lora_modules": given}}]).models
    assert options.adapters(model.args) == ["one", "two"]


def test_a_model_without_a_tool_parser_has_no_tools_in_open_webui() -> None:
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    models = [
        {"id": "with", "model": "org/x", "host_port": 8000, "args": tools},
        {"id": "without", "model": "org/y", "host_port": 8001, "args": {"max_model_len": "32k"}},
        {"id": "other", "model": "org/z", "host_port": 8002, "start_command": ["llama-server", "--port", "8002"]},
    ]
    cards = gateway_models.cards(parse(models), 1)
    shown = {name: card.shown(view.ASLEEP, "", False, 11.2, ()) for name, card in cards.items()}
    found = {name: one["entry"] for name, one in shown.items()}
    assert [name for name, entry in found.items() if '"builtin_tools": false' in entry] == ["without"]
    assert not any("max_model_len" in entry for entry in found.values())
    assert '"description": "Asleep, ready in about 12 s"' in found["with"]


@pytest.mark.parametrize(
    ("host", "told"), [("127.0.0.1", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")]
)
def test_an_address_is_told_as_nginx_reads_it(host: str, told: str) -> None:
    command = ["vllm", "serve", "org/a", "--host", host, "--port", "8000"]
    (card,) = gateway_models.cards(
        parse([{"id": "a", "model": "org/a", "host_port": 8000, "start_command": command}]), 1
    ).values()
    assert card.shown(view.READY, "", True, 0.0, ())["host"] == told


def test_five_thousand_waiters_are_light() -> None:
    import tracemalloc

    it = Room()
    links = [Link() for _each in range(4)]
    for link in links:
        it.room.connected(link)
    tracemalloc.start()
    began = time.process_time()
    for number in range(5000):
        link = links[number % 4]
        it.room.wait(link, {"id": number, "model": NAMES[number % 3], "key": f"key{number % 50}", "waited": 0.0})
        it.room.settle()
        link.told.clear()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used / 5000 < 2000, f"{used / 5000:.0f} bytes each"
    assert time.process_time() - began < 10
    it.room.tell_places()
    assert sum(len(link.of("tell")) for link in links) == 12  # models, for each link
    for link in links:
        link.told.clear()
    it.room.wait(links[0], {"id": 5001, "model": NAMES[0]})
    it.room.settle()
    assert [one["t"] for one in links[0].told] == ["held"], "one more is told with the others"
