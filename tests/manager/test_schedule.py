# SPDX-License-Identifier: MIT
"""What is told of a long queue, and what that costs: everything of it is known after one pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory as inventory_module
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import plan
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import Observation
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.switch import Switcher
from model_manager.board import Board
from model_manager.config import Config
from model_manager.context import Context
from model_manager.control import Control
from model_manager.events import Bus
from model_manager.gateway import Gateway
from model_manager.history import History
from model_manager.host_state import HostState
from model_manager.reconcile import Reconciler
from model_manager.schedule import Schedule
from model_manager.tickets import Ticket

NOW = 1000.0


class Desk:
    """A schedule without threads and servers: models that share a GPU, the first of them active."""

    def __init__(self, models: int, sleep_level: str = "1") -> None:
        declared = [
            {"id": name, "model": f"org/{name}", "host_port": port, "weights_gb": 10, "sleep_level": sleep_level}
            for name, port in ((f"m{number}", 8000 + number) for number in range(models))
        ]
        config = Config(stack_dir="/nowhere")
        context = Context(config, History(":memory:"), Bus(), lambda: NOW, lambda: NOW, Switcher)
        reconciler = Reconciler(config)
        inventory = inventory_module.parse(declared)
        self.host = HostState(inventory, reconciler.breakers, context.now, context.clock)
        self.host.seen = {
            model.id: Observation(plan.SLEEPING if number else plan.ACTIVE, level=1 if number else None)
            for number, model in enumerate(inventory.models)
        }
        self.schedule = Schedule(config, self.host, context.now)
        # There is none: nobody asks it for a ticket or a model.
        gateway = Gateway(context, self.host, self.schedule, {}, self.ask, inventory.find)
        self.board = Board(context, self.host, self.schedule, Control(context, self.host), reconciler, gateway)
        self.events = context.bus.subscribe()

    def ask(self, model: str, desired: str = plan.ACTIVE, level: int | None = None, waiters: int = 1) -> Ticket:
        """One more ticket."""
        ticket = Ticket(model, desired, level, "", False, NOW, lambda _ticket: False, self.schedule.place)
        ticket.waiters = waiters
        self.schedule.waiting.append(ticket)
        return ticket

    def eta(self, model: str) -> float:
        """How long until it could be active."""
        return self.schedule.eta(self.host.inventory.find(model), self.schedule.forecast())


def test_places_and_times_add_up() -> None:
    desk = Desk(4)
    leave, arrive = desk.host.estimate(["m0"], None), desk.host.estimate([], "m1")
    assert (desk.eta("m0"), desk.eta("m1")) == (0.0, leave + arrive)
    there, down, back = desk.ask("m1", waiters=3), desk.ask("m1", plan.SLEEPING), desk.ask("m0", waiters=2)
    assert desk.schedule.place(there) == (1, leave + arrive)
    assert desk.schedule.place(down) == (2, leave + arrive + leave)
    assert desk.schedule.place(back) == (3, leave + arrive + leave + arrive)  # nobody has to make room for it
    assert (back.view().position, back.eta_seconds) == desk.schedule.place(back)
    # Whoever asks for m0 joins; m2 comes after all.
    assert desk.eta("m0") == back.eta_seconds
    assert desk.eta("m2") == pytest.approx((back.eta_seconds or 0) + leave + arrive)
    seen = desk.board.view()
    assert [(one.id, one.position, one.eta_seconds) for one in seen.queue] == [
        (one.id, *desk.schedule.place(one)) for one in (there, down, back)
    ]
    assert [one.queue_depth for one in seen.models.values()] == [2, 4, 0, 0]
    assert [one.eta_seconds for one in seen.models.values()] == [desk.eta(name) for name in seen.models]


def test_the_switch_that_runs_is_the_first_of_the_queue() -> None:
    desk = Desk(3)
    running, waiting = desk.ask("m1"), desk.ask("m2")
    desk.schedule.waiting.remove(running)
    desk.schedule.running, running.status, running.begun_at = running, "running", NOW - 1.0
    running.active_before = desk.host.awake()
    whole = desk.host.estimate(["m0"], "m1")
    assert running.view().position == 0 and running.eta_seconds == whole - 1.0
    assert waiting.view().position == 1
    assert waiting.eta_seconds == pytest.approx(whole - 1.0 + desk.host.estimate(["m1"], "m2"))


def test_a_ticket_that_is_over_has_no_place() -> None:
    desk = Desk(2)
    ticket = desk.ask("m1")
    desk.schedule.waiting.remove(ticket)
    assert desk.schedule.place(ticket) == (None, None)
    ticket.status = "done"
    assert (ticket.view().position, ticket.eta_seconds) == (None, None)


def _fill(desk: Desk, tickets: int) -> None:
    kinds: Iterable[tuple[str, int | None]] = [(plan.ACTIVE, None), (plan.SLEEPING, None), (plan.SLEEPING, 1)]
    names = [model.id for model in desk.host.inventory.models]
    for (desired, level), name in itertools.islice(itertools.cycle(itertools.product(kinds, names)), tickets):
        desk.ask(name, desired, level)


def test_a_long_queue_costs_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    whole = HostState.estimate

    def estimate(self: HostState, *arguments: Any) -> float:
        asked.append(arguments)
        return whole(self, *arguments)

    monkeypatch.setattr(HostState, "estimate", estimate)
    counts = {}
    for tickets in (50, 500):
        desk = Desk(10)
        _fill(desk, tickets)
        asked.clear()
        assert len(desk.board.view().queue) == tickets
        desk.board.publish_queue()
        counts[tickets] = len(asked)
    assert counts[500] <= 10 * 3 * 2 + 10 + 100  # by models and kinds, however many wait
    assert counts[500] <= 2 * counts[50]


def test_to_show_and_to_tell_of_five_hundred_takes_milliseconds() -> None:
    desk = Desk(50, "auto")
    _fill(desk, 500)
    took = []
    for _each in range(5):
        began = time.perf_counter()
        desk.board.view()
        desk.board.publish_queue()
        desk.schedule.next()
        took.append(time.perf_counter() - began)
    # Quadratic, it took tens of seconds. Any machine is as fast as this.
    assert min(took) < 1.0, took
