# SPDX-License-Identifier: MIT
"""The plan: its cells one by one, the sleep levels, what blocks it, and that no plan whatever breaks the rules.

The rules are checked on a little host of our own (class Host), which carries plans out in every order they allow.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import typing

import pytest
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import Blocked
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import Inventory, Model, parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.plan import (
    ACTIVE,
    DISABLED,
    DRAIN,
    ERROR,
    LEVEL_1_TRANSIENT_SHARE,
    LOADING,
    SLEEP,
    SLEEPING,
    START,
    STOP,
    STOPPED,
    VERIFY,
    WAKE,
    Observation,
    Plan,
    Stage,
    Step,
    make_plan,
    predict,
    reading_step,
    sleep_ram_gb,
)
from hypothesis import given, settings
from hypothesis import strategies as st

WANTED = (ACTIVE, SLEEPING, STOPPED)

# Everything that a server can be seen to be.
AWAKE = Observation(ACTIVE)
ASLEEP_1 = Observation(SLEEPING, level=1)
ASLEEP_2 = Observation(SLEEPING, level=2)
ASLEEP = Observation(SLEEPING)
PAUSED = Observation(SLEEPING, level=0)  # keeps its GPU
COMING_UP = Observation(LOADING)
GONE = Observation(STOPPED)
DEAD = Observation(ERROR, problem="it hangs", dead=True)
DEAD_OURS = Observation(ERROR, problem="it hangs", dead=True, process=True)
DEAD_NOT_OURS = Observation(ERROR, problem="it hangs", dead=True, process=False)
WRONG = Observation(ERROR, problem="it says nonsense")
WRONG_OURS = Observation(ERROR, problem="it says nonsense", process=True)
WRONG_NOT_OURS = Observation(ERROR, problem="it says nonsense", process=False)
UNKNOWN = Observation(ERROR, problem="no answer", unknown=True)
UNKNOWN_OURS = Observation(ERROR, problem="no answer", unknown=True, process=True)
HELD = Observation(SLEEPING, level=0, held=True)
AWAKE_HELD = Observation(ACTIVE, held=True)
HALF = Observation(SLEEPING, doubtful=True, running=0)  # its GPU is not known to be free
HALF_BUSY = Observation(SLEEPING, level=1, doubtful=True, running=2)
ANY = (
    AWAKE,
    ASLEEP_1,
    ASLEEP_2,
    ASLEEP,
    PAUSED,
    COMING_UP,
    GONE,
    DEAD,
    DEAD_OURS,
    DEAD_NOT_OURS,
    WRONG,
    WRONG_OURS,
    WRONG_NOT_OURS,
    UNKNOWN,
    UNKNOWN_OURS,
    HELD,
    AWAKE_HELD,
    HALF,
    HALF_BUSY,
)


def inventory_of(*models: dict[str, typing.Any], **switching: typing.Any) -> Inventory:
    """An inventory of models called a, b, c and so on, which all use GPU 0 unless they say otherwise."""
    names = "abcdefgh"
    entries = [
        {"id": names[n], "model": "org/" + names[n], "host_port": 8001 + n, **keys} for n, keys in enumerate(models)
    ]
    return parse(entries, switching)


def plan_of(inventory: Inventory, seen: typing.Sequence[Observation], wanted: str, mem: float | None = None) -> str:
    """The plan for model a, written down: stages are parted by a semicolon, lanes by a bar, steps by a comma."""
    observed = dict(zip((m.id for m in inventory.models), seen, strict=True))
    return written(make_plan(inventory, observed, inventory.models[0], wanted, mem))


def written(plan: Plan) -> str:
    return "; ".join(" | ".join(", ".join(str(step) for step in lane) for lane in stage) for stage in plan.stages)


# One model, nobody in its way: what it is seen to be, and the plans for active, sleeping and stopped. None is Blocked.

CELLS: list[tuple[Observation, str | None, str | None, str]] = [
    (AWAKE, "", "drain a, sleep a (level 1)", "drain a, stop a"),
    (ASLEEP_1, "wake a (level 1), verify a", "", "stop a"),
    (ASLEEP_2, "wake a (level 2), verify a", "", "stop a"),
    (ASLEEP, "wake a, verify a", "", "stop a"),
    (PAUSED, "drain a, sleep a (level 1), wake a, verify a", "drain a, sleep a (level 1)", "drain a, stop a"),
    (COMING_UP, "verify a", "verify a; sleep a (level 1)", "stop a"),
    (GONE, "start a, verify a", "start a, verify a; sleep a (level 1)", ""),
    (DEAD, "stop a; start a, verify a", "stop a; start a, verify a; sleep a (level 1)", "stop a"),
    (DEAD_OURS, "stop a; start a, verify a", "stop a; start a, verify a; sleep a (level 1)", "stop a"),
    (DEAD_NOT_OURS, None, None, ""),
    (WRONG, None, None, "stop a"),
    (WRONG_OURS, None, None, "stop a"),
    (WRONG_NOT_OURS, None, None, ""),
    *(
        (
            seen,
            "drain a, stop a; start a, verify a",
            "drain a, stop a; start a, verify a; sleep a (level 1)",
            "drain a, stop a",
        )
        for seen in (UNKNOWN, UNKNOWN_OURS)
    ),
    (HELD, "wake a (level 0), verify a", "drain a, sleep a (level 1)", "drain a, stop a"),
    (AWAKE_HELD, "wake a (level 0), verify a", "drain a, sleep a (level 1)", "drain a, stop a"),
    (HALF, "wake a, verify a", "wake a, verify a; sleep a (level 1)", "stop a"),
    (HALF_BUSY, "drain a, wake a, verify a", "drain a, wake a, verify a; sleep a (level 1)", "drain a, stop a"),
]
SINGLE_CELLS = [
    pytest.param(seen, wanted, plan, id=f"{seen.state}-{number}-{wanted}")
    for number, (seen, *plans) in enumerate(CELLS)
    for wanted, plan in zip(WANTED, plans, strict=True)
]


def test_the_cells_are_complete() -> None:
    assert [seen for seen, *_plans in CELLS] == list(ANY)


@pytest.mark.parametrize(("seen", "wanted", "plan"), SINGLE_CELLS)
def test_a_model_alone(seen: Observation, wanted: str, plan: str | None) -> None:
    inventory = inventory_of({})
    if plan is None:
        with pytest.raises(Blocked, match=f"^a can't be used: {seen.problem}$"):
            plan_of(inventory, [seen], wanted)
    else:
        assert plan_of(inventory, [seen], wanted) == plan


@pytest.mark.parametrize(("seen", "wanted", "plan"), SINGLE_CELLS)
def test_a_model_whose_gpu_another_one_holds(seen: Observation, wanted: str, plan: str | None) -> None:
    inventory = inventory_of({}, {})
    if plan is None:
        with pytest.raises(Blocked, match=f"^a can't be used: {seen.problem}$"):
            plan_of(inventory, [seen, AWAKE], wanted)
        return
    if wanted == ACTIVE:
        # Room first, and nothing else in that stage.
        plan = "drain b, sleep b (level 1)" + (f"; {plan}" if plan else "")
    elif wanted == SLEEPING and "verify" in plan:
        # It has to be loaded to sleep, so b makes room meanwhile and is put back.
        plan = f"drain b, sleep b (level 1); {plan}; wake b (level 1), verify b"
    if wanted != STOPPED:
        # What is dead is stopped while b is still awake: should that fail, b has lost nothing.
        for end in ("stop a; ", "drain a, stop a; "):
            plan = plan.replace(f"drain b, sleep b (level 1); {end}", f"{end}drain b, sleep b (level 1); ")
    assert plan_of(inventory, [seen, AWAKE], wanted) == plan


@pytest.mark.parametrize(("seen", "wanted", "plan"), SINGLE_CELLS)
@pytest.mark.parametrize("other", ANY)
def test_a_model_on_other_gpus_changes_nothing(
    other: Observation, seen: Observation, wanted: str, plan: str | None
) -> None:
    inventory = inventory_of({}, {"gpus": [1]})
    if plan is None:
        with pytest.raises(Blocked):
            plan_of(inventory, [seen, other], wanted)
    else:
        assert plan_of(inventory, [seen, other], wanted) == plan


@pytest.mark.parametrize(
    ("other", "room", "room_when_disabled"),
    [
        (AWAKE, "drain b, sleep b (level 1); ", None),
        (ASLEEP_1, "", ""),
        (ASLEEP_2, "", ""),
        (ASLEEP, "", ""),
        (PAUSED, "drain b, sleep b (level 1); ", None),
        (COMING_UP, "stop b; ", None),
        (GONE, "", ""),
        (DEAD, "stop b; ", ""),
        (DEAD_OURS, "stop b; ", None),
        (DEAD_NOT_OURS, "", ""),
        (WRONG, None, ""),
        (WRONG_OURS, None, None),
        (WRONG_NOT_OURS, "", ""),
        (UNKNOWN, "drain b, stop b; ", ""),
        (UNKNOWN_OURS, "drain b, stop b; ", None),
        (HELD, "drain b, sleep b (level 1); ", None),
        (AWAKE_HELD, "drain b, sleep b (level 1); ", None),
        (HALF, "stop b; ", None),
        (HALF_BUSY, "drain b, stop b; ", None),
        (Observation(DISABLED), "", ""),
    ],
)
def test_room_for_a_model(other: Observation, room: str | None, room_when_disabled: str | None) -> None:
    for mode, expected in (("sleep", room), ("disabled", room_when_disabled)):
        inventory = inventory_of({}, {"startup_mode": mode})
        if expected is None:
            with pytest.raises(Blocked, match=r"^b "):
                plan_of(inventory, [ASLEEP_1, other], ACTIVE)
        else:
            assert plan_of(inventory, [ASLEEP_1, other], ACTIVE) == expected + "wake a (level 1), verify a"


def test_all_who_are_in_the_way_make_room_side_by_side() -> None:
    inventory = inventory_of({"gpus": [0, 1]}, {"gpus": [0]}, {"gpus": [1]}, {"gpus": [1]}, {"gpus": [2]})
    assert plan_of(inventory, [GONE, AWAKE, AWAKE, COMING_UP, AWAKE], ACTIVE) == (
        "drain b, sleep b (level 1) | drain c, sleep c (level 1) | stop d; start a, verify a"
    )


def test_the_dead_are_stopped_before_anybody_makes_room() -> None:
    inventory = inventory_of({"gpus": [0, 1]}, {"gpus": [0]}, {"gpus": [1]}, {"gpus": [1]})
    assert plan_of(inventory, [DEAD, AWAKE, DEAD_OURS, COMING_UP], ACTIVE) == (
        "stop a | stop c; drain b, sleep b (level 1) | stop d; start a, verify a"
    )


def test_those_who_made_room_for_a_load_come_back_as_they_went() -> None:
    inventory = inventory_of(
        {"gpus": [0, 1, 2]},
        {"gpus": [0], "sleep_level": 2},
        {"gpus": [1], "sleep_level": "stop"},
        {"gpus": [2]},
        {"gpus": [2]},
    )
    assert plan_of(inventory, [GONE, AWAKE, AWAKE, AWAKE, ASLEEP_1], SLEEPING) == (
        "drain b, sleep b (level 2) | drain c, stop c | drain d, sleep d (level 1); "
        "start a, verify a; sleep a (level 1); "
        "wake b (level 2), verify b; start c, verify c; wake d (level 1), verify d"
    )


def test_one_that_was_only_loading_does_not_come_back() -> None:
    assert plan_of(inventory_of({}, {}), [GONE, COMING_UP], SLEEPING) == (
        "stop b; start a, verify a; sleep a (level 1)"
    )


@pytest.mark.parametrize(
    ("seen", "plan"),
    [
        (AWAKE, "drain a, stop a"),
        (ASLEEP_1, ""),
        (PAUSED, "drain a, stop a"),
        (COMING_UP, "stop a"),
        (GONE, ""),
        (DEAD, "stop a"),
    ],
)
def test_a_model_whose_sleep_is_a_stop(seen: Observation, plan: str) -> None:
    assert plan_of(inventory_of({"sleep_level": "stop"}, {}), [seen, AWAKE], SLEEPING) == plan


def test_steps_in_words_and_in_order() -> None:
    assert [str(step) for step in (Step(SLEEP, "a", 2), Step(WAKE, "a"), Step(STOP, "b"))] == [
        "sleep a (level 2)",
        "wake a",
        "stop b",
    ]
    inventory = inventory_of({"gpus": [0, 1]}, {"gpus": [0]}, {"gpus": [1]})
    observed = {"a": ASLEEP_2, "b": AWAKE, "c": AWAKE}
    plan = make_plan(inventory, observed, inventory.models[0], ACTIVE)
    assert [str(step) for step in plan.steps] == [
        "drain b",
        "sleep b (level 1)",
        "drain c",
        "sleep c (level 1)",
        "wake a (level 2)",
        "verify a",
    ]


def test_predict_says_how_a_plan_ends() -> None:
    inventory = inventory_of({}, {"sleep_level": 2}, {"gpus": [1]})
    observed = {"a": ASLEEP_1, "b": Observation(ACTIVE, running=3), "c": Observation(ACTIVE, running=1)}
    plan = make_plan(inventory, observed, inventory.models[0], ACTIVE)
    assert predict(observed, plan) == {"a": AWAKE, "b": ASLEEP_2, "c": Observation(ACTIVE, running=1)}
    assert observed["a"] == ASLEEP_1, "predict must not change what it is given"


# Sleep levels


@pytest.mark.parametrize(
    ("budget", "weights", "asleep", "mem", "level"),
    [
        (64, 10, [], None, 1),
        (63.9, 10, [], None, 2),
        (0, None, [], None, 2),
        (128, 128, [], None, 1),
        (128, 128.1, [], None, 2),
        (128, None, [], None, 1),
        (128, 57, [(60, ASLEEP_1)], None, 1),
        (128, 57, [(60, ASLEEP_1), (36, ASLEEP_1)], None, 2),
        (128, 57, [(60, ASLEEP_1), (36, ASLEEP_2)], None, 1),
        (128, 57, [(60, ASLEEP), (36, ASLEEP)], None, 2),
        (128, 57, [(60, ASLEEP_1), (36, GONE)], None, 1),
        (128, 57, [(60, ASLEEP_1), (36, AWAKE)], None, 1),
        (128, 57, [], 62.8, 1),
        (128, 57, [], 62.6, 2),
        (128, 57, [(60, ASLEEP_1)], 63, 1),
        (63, 57, [], 1000, 2),
    ],
)
def test_the_level_of_a_sleep(
    budget: float,
    weights: float | None,
    asleep: list[tuple[float, Observation]],
    mem: float | None,
    level: int,
) -> None:
    inventory = inventory_of(
        {"weights_gb": weights},
        *({"weights_gb": size, "gpus": [1]} for size, _seen in asleep),
        available_ram_gb=budget,
    )
    seen = [AWAKE, *(observation for _size, observation in asleep)]
    assert plan_of(inventory, seen, SLEEPING, mem) == f"drain a, sleep a (level {level})"
    # The same when it is only just loaded.
    assert plan_of(inventory, [COMING_UP, *seen[1:]], SLEEPING, mem) == f"verify a; sleep a (level {level})"


@pytest.mark.parametrize(
    ("sleep_level", "budget", "mem", "step"),
    [
        (1, 0, None, "sleep a (level 1)"),
        (1, 128, 55.1, "sleep a (level 1)"),
        (2, 1000, 1000, "sleep a (level 2)"),
        ("stop", 1000, 1000, "stop a"),
    ],
)
def test_a_level_that_is_set_holds(sleep_level: int | str, budget: float, mem: float | None, step: str) -> None:
    inventory = inventory_of({"weights_gb": 50, "sleep_level": sleep_level}, available_ram_gb=budget)
    assert plan_of(inventory, [AWAKE], SLEEPING, mem) == f"drain a, {step}"


def test_those_who_make_room_together_share_the_ram() -> None:
    big = {"weights_gb": 60, "gpus": [0]}
    inventory = inventory_of({"gpus": [0, 1, 2]}, big, {**big, "gpus": [1]}, {**big, "gpus": [2]})
    seen = [ASLEEP_2, AWAKE, AWAKE, AWAKE]
    for mem, levels in ((None, (1, 1, 2)), (119, (1, 2, 2))):
        lanes = [f"drain {name}, sleep {name} (level {level})" for name, level in zip("bcd", levels, strict=True)]
        assert plan_of(inventory, seen, ACTIVE, mem) == " | ".join(lanes) + "; wake a (level 2), verify a"


def test_a_loaded_model_finds_the_ram_taken_by_those_who_made_room() -> None:
    inventory = inventory_of({"weights_gb": 70}, {"weights_gb": 60})
    assert plan_of(inventory, [GONE, AWAKE], SLEEPING) == (
        "drain b, sleep b (level 1); start a, verify a; sleep a (level 2); wake b (level 1), verify b"
    )


def test_a_woken_model_still_holds_its_ram_while_others_make_room() -> None:
    inventory = inventory_of({"weights_gb": 70}, {"weights_gb": 60})
    assert plan_of(inventory, [ASLEEP_1, AWAKE], ACTIVE) == ("drain b, sleep b (level 2); wake a (level 1), verify a")


# Blocked


@pytest.mark.parametrize(
    ("models", "seen", "mem", "message"),
    [
        ([{}], [WRONG], None, "a can't be used: it says nonsense"),
        (
            [{}, {}],
            [ASLEEP_1, WRONG_OURS],
            None,
            "b shares a GPU with a, and it is unknown whether it is awake: it says nonsense",
        ),
        (
            [{}, {"startup_mode": "disabled"}],
            [ASLEEP_1, AWAKE],
            None,
            "b is disabled, so it is left alone, but its server is active and holds a GPU that a needs: stop it, or "
            "set its startup_mode to sleep",
        ),
        (
            [{}, {"startup_mode": "disabled"}],
            [ASLEEP_1, WRONG_OURS],
            None,
            "b is disabled, so it is left alone, but its server is in error (it says nonsense) and holds a GPU that a "
            "needs: stop it, or set its startup_mode to sleep",
        ),
        (
            [{}, {"sleep_level": 1, "weights_gb": 50}],
            [ASLEEP_1, AWAKE],
            49.9,
            "b can't sleep at level 1: that takes 50.0 GB of host RAM, 5.0 GB more while they are copied, and 49.9 GB "
            "are available; set its sleep_level to auto or 2",
        ),
    ],
)
def test_what_blocks_a_model(
    models: list[dict[str, typing.Any]], seen: list[Observation], mem: float | None, message: str
) -> None:
    with pytest.raises(Blocked) as caught:
        plan_of(inventory_of(*models), seen, ACTIVE, mem)
    assert str(caught.value) == message


@pytest.mark.parametrize("other", [WRONG, WRONG_OURS])
@pytest.mark.parametrize(
    ("seen", "wanted"), [(AWAKE, SLEEPING), (ASLEEP_1, SLEEPING), (AWAKE, STOPPED), (GONE, STOPPED)]
)
def test_what_gives_gpus_free_is_never_blocked_by_others(seen: Observation, wanted: str, other: Observation) -> None:
    alone = plan_of(inventory_of({}), [seen], wanted)
    assert plan_of(inventory_of({}, {}), [seen, other], wanted) == alone
    assert plan_of(inventory_of({}, {"startup_mode": "disabled"}), [seen, AWAKE], wanted) == alone


def test_of_two_that_conflict_only_one_comes_back() -> None:
    assert plan_of(inventory_of({}, {}, {}), [GONE, AWAKE, AWAKE], SLEEPING) == (
        "drain b, sleep b (level 1) | drain c, sleep c (level 1); start a, verify a; sleep a (level 1); "
        "wake b (level 1), verify b"
    )


# The rules that every plan keeps


class Host:
    """A host that carries out a plan. Every step takes time: it is begun, and later done.

    A model is up (awake, or on the way there, or nobody knows), asleep, gone, or leaving (told to sleep or stop but
    not yet known to have done so). One that is up or leaving has the GPU.
    """

    def __init__(self, inventory: Inventory, observed: typing.Mapping[str, Observation]) -> None:
        self.models = {m.id: m for m in inventory.models}
        self.observed = observed
        self.state = {name: self._first_state(name) for name in self.models}
        self.level = {name: seen.level for name, seen in observed.items()}
        # An unknown one may be: it is treated as if it were.
        self.ready = {name for name, seen in observed.items() if seen.state == ACTIVE or seen.paused or seen.unknown}
        self.busy = {name for name, seen in observed.items() if seen == HALF_BUSY}
        self.drained: set[str] = set()
        self.touched: set[str] = set()
        self.slept: set[str] = set()
        self.left: set[str] = set()

    def _first_state(self, name: str) -> str:
        seen = self.observed[name]
        if seen.state == ERROR:
            # What is not our server holds no GPU of ours. A disabled model counts only if its server is known to run.
            runs = seen.process if self.models[name].disabled else seen.process is not False
            return "up" if runs else "gone"
        if seen.paused:
            return "up"
        if seen.doubtful and seen.state == SLEEPING:
            return "half"
        return {ACTIVE: "up", LOADING: "up", SLEEPING: "asleep"}.get(seen.state, "gone")

    def carry_out(self, plan: Plan, shuffle: random.Random) -> None:
        """Do the stages one after the other, and the lanes of each in some order, step in step or one by one."""
        for stage in plan.stages:
            lanes = [[(do, step) for step in lane for do in (self.begin, self.finish)] for lane in stage]
            while lanes:
                lane = shuffle.choice(lanes)
                do, step = lane.pop(0)
                do(step)
                lanes = [lane for lane in lanes if lane]

    def begin(self, step: Step) -> None:
        name = step.model
        self.touched.add(name)
        if step.action == DRAIN:
            assert name in self.ready | self.busy, f"{step}: it has nothing to drain"
        elif step.action == SLEEP:
            assert name in self.ready, f"{step}: only one that is ready can be put to sleep"
            assert step.level in (1, 2)
            self._leave(step)
        elif step.action == STOP:
            assert self.state[name] in ("up", "asleep", "half"), f"{step}: it is {self.state[name]}"
            self._leave(step)
        elif step.action == WAKE:
            seen = self.observed[name]
            resumed = seen.held and name not in self.slept
            assert resumed or self.state[name] in ("asleep", "half"), f"{step}: it is {self.state[name]}"
            assert name not in self.busy - self.drained, f"{step}: it has requests"
            # One that was paused may have gone to sleep at another level than the one asked for now.
            known = None if seen == PAUSED or (seen.doubtful and name not in self.slept) else self.level[name]
            known = 0 if resumed else known
            assert step.level == known, f"{step}: it sleeps at level {known}"
            self._come(step)
        elif step.action == START:
            assert self.state[name] == "gone", f"{step}: it is {self.state[name]}"
            self._come(step)
        else:
            assert step.action == VERIFY
            assert self.state[name] == "up", f"{step}: it is {self.state[name]}"
            self._come(step)

    def _leave(self, step: Step) -> None:
        """Nobody's requests are cut: whoever was found awake is drained first."""
        name = step.model
        seen = self.observed[name]
        has_requests = (seen.state == ACTIVE or seen.unknown) and name not in self.left
        if (name in self.ready and has_requests) or name in self.busy:
            assert name in self.drained, f"{step}: its requests are cut"
        self.left.add(name)
        self.ready.discard(name)
        self.busy.discard(name)
        self.drained.discard(name)
        self.state[name] = "leaving"

    def _come(self, step: Step) -> None:
        """Nobody comes up before the GPU is free."""
        for other in self.models.values():
            if not other.conflicts_with(self.models[step.model]) or self.state[other.id] in ("asleep", "gone"):
                continue
            raise AssertionError(f"{step}: {other.id} is {self.state[other.id]} on the same GPU")
        self.state[step.model] = "up"

    def finish(self, step: Step) -> None:
        name = step.model
        if step.action == DRAIN:
            self.drained.add(name)
        elif step.action == SLEEP:
            self.state[name], self.level[name] = "asleep", step.level
            self.slept.add(name)
        elif step.action == STOP:
            self.state[name], self.level[name] = "gone", None
        elif step.action == VERIFY:
            self.ready.add(name)

    def observe(self) -> dict[str, Observation]:
        """What would be seen now."""
        after = dict(self.observed)
        for name in self.touched:
            if self.state[name] == "up":
                assert name in self.ready, f"{name} was brought up but never seen to be ready"
                after[name] = AWAKE
            else:
                after[name] = {"asleep": Observation(SLEEPING, level=self.level[name]), "gone": GONE}[self.state[name]]
        return after


def check_rules(
    inventory: Inventory,
    observed: dict[str, Observation],
    model: Model,
    wanted: str,
    mem: float | None,
    shuffle: random.Random,
    orders: int = 3,
) -> Plan | None:
    """Plan, carry the plan out in several orders, and check everything that must hold of any plan. None if Blocked."""
    blockers = who_blocks(inventory, observed, model, wanted)
    try:
        plan = make_plan(inventory, observed, model, wanted, mem)
    except Blocked as blocked:
        culprit = str(blocked).split(" ", 1)[0]
        if culprit not in blockers:
            assert "can't sleep at level 1" in str(blocked)
            check_ram_is_short(inventory, observed, model, wanted, mem, culprit)
        return None
    assert not blockers
    check_shape(inventory, model, plan)
    check_dead_first(observed, plan)
    check_levels(inventory, observed, mem, plan)
    for _order in range(orders):
        host = Host(inventory, observed)
        host.carry_out(plan, shuffle)
        after = host.observe()
        assert after == predict(observed, plan)
    check_end(inventory, observed, after, model, wanted, plan)
    assert make_plan(inventory, after, model, wanted, mem) == Plan(), "applied twice, it still does something"
    return plan


def needs_the_gpu(observed: dict[str, Observation], model: Model, wanted: str) -> bool:
    """Whether the model has to be the only one on its GPUs, if only to be loaded before it sleeps."""
    if wanted == SLEEPING:
        seen = observed[model.id]
        return (seen.state not in (ACTIVE, SLEEPING) or seen in (HALF, HALF_BUSY)) and model.sleep_level != "stop"
    return wanted == ACTIVE


def who_blocks(inventory: Inventory, observed: dict[str, Observation], model: Model, wanted: str) -> set[str]:
    """The models because of which there is no safe plan, want of RAM aside."""
    blockers = set()
    seen = observed[model.id]
    if wanted != STOPPED and seen.state == ERROR and not seen.unknown and (not seen.dead or seen.process is False):
        blockers.add(model.id)
    if needs_the_gpu(observed, model, wanted):
        for other in inventory.conflicting(model):
            seen = observed[other.id]
            if other.disabled:
                in_error = seen.state == ERROR and seen.process is True
                in_the_way = seen.state in (ACTIVE, LOADING) or seen.paused or seen.doubtful or in_error
            else:
                in_the_way = seen.state == ERROR and not (seen.dead or seen.unknown) and seen.process is not False
            if in_the_way:
                blockers.add(other.id)
    return blockers


def check_ram_is_short(
    inventory: Inventory,
    observed: dict[str, Observation],
    model: Model,
    wanted: str,
    mem: float | None,
    culprit: str,
) -> None:
    """Only one that is told to sleep at level 1, has to sleep now and finds no RAM may block for that reason."""
    to_sleep = [model] if wanted == SLEEPING or observed[model.id].paused else []
    if needs_the_gpu(observed, model, wanted):
        others = [m for m in inventory.conflicting(model) if not m.disabled]
        to_sleep += [m for m in others if observed[m.id].state == ACTIVE or observed[m.id].paused]
    assert culprit in {m.id for m in to_sleep if m.sleep_level == "1"}
    assert mem is not None
    assert sum(copied(m) for m in to_sleep if m.sleep_level in ("1", "auto")) > mem


def copied(model: Model) -> float:
    """The RAM that the copy of a model's weights needs while it is made."""
    return (model.weights_gb or 0) * (1 + LEVEL_1_TRANSIENT_SHARE)


def check_shape(inventory: Inventory, model: Model, plan: Plan) -> None:
    """Only the model and those in its way are touched, each lane is one server's, and room comes before a wake."""
    models = {m.id: m for m in inventory.models}
    may_touch = {model.id} | {m.id for m in inventory.conflicting(model) if not m.disabled}
    for stage in plan.stages:
        assert stage
        assert all(stage)
        assert all(len({step.model for step in lane}) == 1 for lane in stage)
        names = [lane[0].model for lane in stage]
        assert len(set(names)) == len(names), "two lanes of a stage for one server"
        assert set(names) <= may_touch
        assert not any(conflicting_in(stage, models)), "one makes room and another comes up in the same stage"
    assert all((step.level is None) or step.action in (SLEEP, WAKE) for step in plan.steps)


def check_dead_first(observed: dict[str, Observation], plan: Plan) -> None:
    """Nobody who is awake makes room while a stop of a dead one, which may fail, is still to come."""
    unknown = {name for name, seen in observed.items() if seen.unknown}
    stages = [
        {
            (step.action, step.model)
            for lane in stage
            for step in lane
            if (step.action, step.model in unknown) != (DRAIN, True)
        }
        for stage in plan.stages
    ]
    dead = {(STOP, name) for name, seen in observed.items() if seen.state == ERROR}
    buried = max((number for number, stage in enumerate(stages) if stage & dead), default=-1)
    makes_room = (number for number, stage in enumerate(stages) if any(action == DRAIN for action, _name in stage))
    assert next(makes_room, len(stages)) > buried


def conflicting_in(stage: Stage, models: dict[str, Model]) -> typing.Iterator[bool]:
    """Whether one of two lanes makes room while the other comes up on the same GPU, for all such pairs."""
    for going, coming in itertools.permutations(stage, 2):
        if models[going[0].model].conflicts_with(models[coming[0].model]):
            yield any(s.action in (SLEEP, STOP) for s in going) and any(s.action in (WAKE, START) for s in coming)


def check_levels(inventory: Inventory, observed: dict[str, Observation], mem: float | None, plan: Plan) -> None:
    """Level 1 is for what RAM there is, in the order of the plan."""
    models = {m.id: m for m in inventory.models}
    budget = inventory.switching.available_ram_gb
    asleep = sum(
        m.weights_gb or 0
        for m in inventory.models
        if observed[m.id].state == SLEEPING and observed[m.id].level in (1, None)
    )
    taken: float = 0
    left = math.inf if mem is None else mem
    for step in plan.steps:
        if step.action == SLEEP:
            model = models[step.model]
            weights = model.weights_gb or 0
            # Where both are the same it is a matter of rounding.
            same = math.isclose(copied(model), left)
            in_ram = step.level == 1 if same else copied(model) <= left
            fits = budget >= 64 and asleep + taken + weights <= budget and in_ram
            assert str(step.level) == (("1" if fits else "2") if model.sleep_level == "auto" else model.sleep_level)
            if step.level == 1:
                assert in_ram
                taken += weights
                left -= copied(model)


def check_end(
    inventory: Inventory,
    observed: dict[str, Observation],
    after: dict[str, Observation],
    model: Model,
    wanted: str,
    plan: Plan,
) -> None:
    """The model is as wanted, and everybody else is as well off as that allows."""
    touched = {step.model for step in plan.steps}
    others = [m for m in inventory.models if m.id != model.id]
    state = after[model.id].state
    if wanted == SLEEPING and model.sleep_level == "stop":
        assert state in (SLEEPING, STOPPED)
    elif wanted == STOPPED and observed[model.id].process is False:
        assert state in (STOPPED, ERROR)
    else:
        assert state == wanted
        assert after[model.id] != PAUSED
    if not needs_the_gpu(observed, model, wanted):
        assert touched <= {model.id}
    for other in others:
        before = observed[other.id]
        if other.id in touched:
            in_the_way = before.state in (ACTIVE, LOADING) or before.paused or before.doubtful
            in_the_way = in_the_way or before.dead or before.unknown
            assert in_the_way, "it was in nobody's way"
        if wanted == ACTIVE and other.conflicts_with(model):
            assert after[other.id].state not in (ACTIVE, LOADING)
            assert after[other.id] != PAUSED
        if after[other.id].state == ACTIVE:
            assert before.serving, "it was not awake before"
        elif wanted == SLEEPING and before.serving and other.id in touched:
            # Of two that conflict with each other it is enough that one is back.
            rivals = [after[m.id] for m in inventory.conflicting(other)]
            in_place = (r.state in (ACTIVE, LOADING, ERROR) or r.paused or r.doubtful for r in rivals)
            assert any(in_place), "it was not restored"


def test_every_pair_of_models_on_one_gpu() -> None:
    shuffle = random.Random(1)
    levels = ("auto", 1, 2, "stop")
    plans = blocked = 0
    for level, other_level, mode in itertools.product(levels, levels, ("sleep", "disabled")):
        inventory = inventory_of(
            {"sleep_level": level, "weights_gb": 40},
            {"sleep_level": other_level, "weights_gb": 50, "startup_mode": mode},
        )
        for seen, other, wanted in itertools.product(ANY, ANY, WANTED):
            observed = {"a": seen, "b": other}
            mem = (None, 60)[plans % 2]
            if check_rules(inventory, observed, inventory.models[0], wanted, mem, shuffle, orders=1) is None:
                blocked += 1
            plans += 1
    assert plans == 4 * 4 * 2 * len(ANY) ** 2 * 3
    assert 0 < blocked < plans / 2


def test_every_three_models_of_which_one_needs_the_gpus_of_both_others() -> None:
    shuffle = random.Random(1)
    inventory = inventory_of({"gpus": [0, 1]}, {"gpus": [0]}, {"gpus": [1]})
    for seen in itertools.product(ANY, repeat=3):
        observed = dict(zip("abc", seen, strict=True))
        for model, wanted in itertools.product(inventory.models[:2], WANTED):
            check_rules(inventory, observed, model, wanted, None, shuffle, orders=2)


# One draw for a whole model keeps the generation quick. Simple ones first: that is where a failing case shrinks to.
MODELS = [
    {"startup_mode": mode, "sleep_level": level, "weights_gb": weights, "gpus": gpus}
    for mode, level, weights, gpus in itertools.product(
        ("sleep", "sleep", "sleep", "active", "disabled"),
        ("auto", "auto", 1, 2, "stop"),
        (None, 1, 14, 40, 60, 100),
        ([0], [1], [0, 1], [1, 2], [0, 2], [0, 1, 2]),
    )
]
# What makes for long plans is frequent, what blocks them is rare.
SEEN = (
    *(AWAKE, GONE, COMING_UP) * 6,
    *(ASLEEP_1, ASLEEP_2, ASLEEP, PAUSED, DEAD, DEAD_OURS, UNKNOWN, HELD, HALF) * 3,
    *ANY,
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Inventory, dict[str, Observation], Model]:
    """One to six models on a few GPUs, what they are seen to be, and the one that something is wanted of."""
    count = draw(st.integers(1, 6))
    drawn = draw(st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(SEEN)), min_size=count, max_size=count))
    entries: list[dict[str, typing.Any]] = [dict(keys) for keys, _seen in drawn]
    target = draw(st.integers(0, len(entries) - 1))
    if entries[target]["startup_mode"] == "disabled":
        entries[target]["startup_mode"] = "sleep"
    taken: set[int] = set()
    for entry in entries:
        if entry["startup_mode"] == "active":
            if taken & set(entry["gpus"]):
                entry["startup_mode"] = "sleep"
            else:
                taken |= set(entry["gpus"])
    inventory = inventory_of(*entries, available_ram_gb=draw(st.sampled_from([0, 63, 64, 128, 250])))
    model = inventory.models[target]
    observed = {
        # Nobody looks at a disabled model that is in nobody's way.
        m.id: Observation(DISABLED) if m.disabled and not m.conflicts_with(model) else seen
        for m, (_keys, seen) in zip(inventory.models, drawn, strict=True)
    }
    return inventory, observed, model


@settings(max_examples=1200)
@given(
    situation=situations(),
    wanted=st.sampled_from((*WANTED, ACTIVE, SLEEPING, SLEEPING)),
    mem=st.sampled_from([None, None, 10, 50, 120, 500]),
    seed=st.integers(0, 1000),
)
def test_no_plan_breaks_the_rules(
    situation: tuple[Inventory, dict[str, Observation], Model], wanted: str, mem: float | None, seed: int
) -> None:
    inventory, observed, model = situation
    check_rules(inventory, observed, model, wanted, mem, random.Random(seed))


@pytest.mark.parametrize(
    ("sleep_level", "no_level_2", "rest", "warned"),
    [
        ("auto", "", "sleep b (level 2)", ""),
        ("auto", "of its version", "stop b", "of its version"),
        ("1", "", "sleep b (level 1)", "the GPU of this host shares its RAM"),
        ("2", "", "sleep b (level 2)", ""),
        ("stop", "", "stop b", ""),
    ],
)
def test_where_the_gpu_shares_the_ram(sleep_level: str, no_level_2: str, rest: str, warned: str) -> None:
    inventory = inventory_of({}, {"sleep_level": sleep_level, "weights_gb": 10})
    seen = {"a": ASLEEP_2, "b": dataclasses.replace(AWAKE, no_level_2=no_level_2)}
    plan = make_plan(inventory, seen, inventory.models[0], ACTIVE, 1000.0, shared=True)
    assert written(plan) == f"drain b, {rest}; wake a (level 2), verify a"
    assert [warned in warning for warning in plan.warnings] == ([True] if warned else [])


# What a and b are seen to be, the desired state of a, and whose weights are read ahead for what step.
READ_AHEAD: list[tuple[tuple[Observation, Observation], str, str]] = [
    ((ASLEEP_2, AWAKE), ACTIVE, "wake a (level 2)"),
    ((ASLEEP, AWAKE), ACTIVE, "wake a"),
    ((GONE, AWAKE), ACTIVE, "start a"),
    ((GONE, DEAD), ACTIVE, "start a"),
    ((GONE, AWAKE), SLEEPING, "start a"),  # and b, which comes back, is not read ahead
    ((ASLEEP_1, AWAKE), ACTIVE, ""),
    ((HELD, AWAKE), ACTIVE, ""),
    ((ASLEEP_2, ASLEEP_1), ACTIVE, ""),  # nobody makes room
    ((GONE, GONE), ACTIVE, ""),
    ((COMING_UP, AWAKE), ACTIVE, ""),
    ((AWAKE, ASLEEP_2), SLEEPING, ""),
    ((AWAKE, AWAKE), ACTIVE, ""),
]


@pytest.mark.parametrize(("seen", "wanted", "read"), READ_AHEAD)
def test_whose_weights_are_read_ahead(seen: tuple[Observation, Observation], wanted: str, read: str) -> None:
    inventory = inventory_of({}, {"sleep_level": "2"})
    observed = dict(zip("ab", seen, strict=True))
    step = reading_step(make_plan(inventory, observed, inventory.models[0], wanted))
    assert (str(step) if step else "") == read


def test_the_ram_that_the_sleeps_of_a_plan_take() -> None:
    inventory = inventory_of(
        {"gpus": [0, 1, 2]},
        {"gpus": [0], "weights_gb": 20, "sleep_level": "1"},
        {"gpus": [1], "weights_gb": 40, "sleep_level": "2"},
        {"gpus": [2], "sleep_level": "1"},
    )
    models = {m.id: m for m in inventory.models}
    plan = make_plan(inventory, {"a": GONE, **dict.fromkeys("bcd", AWAKE)}, models["a"], ACTIVE)
    assert sleep_ram_gb(plan, models) == pytest.approx(22)


def test_level_1_takes_ram_that_the_gpu_shares() -> None:
    inventory = inventory_of({}, {"sleep_level": "1", "weights_gb": 10})
    with pytest.raises(Blocked, match=r"b can't sleep at level 1: that takes 10\.0 GB of host RAM"):
        make_plan(inventory, {"a": ASLEEP_2, "b": AWAKE}, inventory.models[0], ACTIVE, 10.9, shared=True)
