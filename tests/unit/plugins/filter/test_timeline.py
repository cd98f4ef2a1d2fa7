# SPDX-License-Identifier: MIT
"""The picture of a switch: what is drawn where, and that any viewer can read it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homegpt.vllm.plugins.filter.timeline import FilterModule
from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import ACTIONS, WIDTH

timeline = FilterModule().filters()["timeline"]
SVG = "{http://www.w3.org/2000/svg}"


def step(action: str, model: str, started: float, seconds: float, **more: object) -> dict[str, Any]:
    return {
        "action": action, "model": model, "level": None, "started_seconds": started, "seconds": seconds, **more
    }  # fmt: skip


STEPS = [
    step("drain", "old", 0.1, 0.4),
    step("sleep", "old", 0.5, 1.0, level=1),
    step("wake", "new", 1.5, 2.0, level=1),
    step("verify", "new", 3.5, 0.25, note="answers as recorded"),
]


def row(host: str, **more: object) -> dict[str, Any]:
    return {"host": host, "from": "old", "to": "new", "seconds": 3.8, "result": "switched", "steps": STEPS, **more}


class Bar(NamedTuple):
    """A step as it is drawn, and what is said of it."""

    classes: str
    x: float
    y: float
    width: float
    said: str


class Picture:
    """What is drawn."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        text = timeline(rows)
        self.root = ElementTree.fromstring(text)
        self.texts = [(element.text or "") for element in self.root.iter(f"{SVG}text")]
        bars = [element for element in self.root.iter(f"{SVG}rect") if element.find(f"{SVG}title") is not None]
        self.bars = [
            Bar(
                str(each.get("class")).removeprefix("bar "),
                float(str(each.get("x"))),
                float(str(each.get("y"))),
                float(str(each.get("width"))),
                str(each[0].text),
            )
            for each in bars
        ]
        # Nothing that a browser would not show in an image, and nothing that it would have to fetch.
        assert {element.tag.removeprefix(SVG) for element in self.root.iter()} <= {
            "svg", "title", "style", "rect", "path", "text"
        }  # fmt: skip
        assert "url(" not in text
        assert "prefers-color-scheme: dark" in text
        for rectangle in self.root.iter(f"{SVG}rect"):
            right = float(str(rectangle.get("x"))) + float(str(rectangle.get("width")))
            assert 0 <= float(str(rectangle.get("x"))) <= right <= WIDTH

    def scale(self) -> float:
        """How many units wide a second is: the longest bar tells it."""
        _classes, _x, _y, width, said = max(self.bars, key=lambda each: each.width)
        seconds = re.search(r" ([\d.]+) s, from", said)
        assert seconds
        return width / float(seconds[1])


def test_one_host_has_a_lane_for_each_model() -> None:
    picture = Picture([row("gpu1", wave=1, back=[])])
    assert picture.texts[0] == "gpu1: old → new, 3.8 s"
    assert [each.classes for each in picture.bars] == ["drain", "sleep", "wake", "verify"]
    lanes = [each.y for each in picture.bars]
    assert lanes[0] == lanes[1] < lanes[2] == lanes[3]
    second = picture.scale()
    left = picture.bars[0].x - 0.1 * second
    for (_classes, x, _y, width, _said), done in zip(picture.bars, STEPS, strict=True):
        assert x == pytest.approx(left + done["started_seconds"] * second, abs=0.2)
        assert width == pytest.approx(done["seconds"] * second, abs=0.2)
    assert {"old", "new", "drain 0.40 s, sleep 1.00 s", "wake 2.00 s, verify 0.25 s"} <= set(picture.texts)
    assert picture.bars[3].said == "verify new 0.25 s, from 3.50 s on: answers as recorded"
    assert picture.bars[1].said == "sleep old (level 1) 1.00 s, from 0.50 s on"


def test_what_failed_and_what_mended_it_is_seen() -> None:
    steps = [
        *STEPS[:2],
        step("wake", "new", 1.5, 0.1, failed="new: answered <500> & more"),
        step("wake", "new", 1.6, 0.1, escalation="retry", failed="no"),
        step("wake", "old", 1.7, 0.3, escalation="roll_back"),
    ]
    picture = Picture([row("gpu1", to="old", result="failed", steps=steps)])
    assert picture.texts[0] == "gpu1: failed, old stays, 3.8 s"
    # Those of the old model come first.
    assert [each.classes for each in picture.bars] == [
        "drain",
        "sleep",
        "wake recovery",
        "wake failed",
        "wake recovery failed",
    ]
    assert picture.bars[3].said.endswith(": new: answered <500> & more")
    assert "wake failed 0.10 s, retry: wake failed 0.10 s" in picture.texts
    assert {"failed", "retry, restart, stop or roll back"} <= set(picture.texts)


def test_a_fleet_by_waves() -> None:
    slow = [{**STEPS[0], "seconds": 9.0}]
    rows = [
        row("gpu1", wave=1, back=[step("wake", "old", 0.5, 1.0)], result="rolled back"),
        row("gpu2", wave=2),
        row("gpu3", wave=2, seconds=9.2, steps=slow, result="failed", to="old"),
        row("gpu4", wave=None, seconds=None, steps=[], result="not tried", **{"from": None}, to=None),
    ]
    picture = Picture(rows)
    # The waves one after the other, and then what was put back.
    assert picture.texts[0] == f"4 hosts in 2 waves: old → new, {3.8 + 9.2 + 1.5:.1f} s"
    heads = ["wave 1", "gpu1", "wave 2", "gpu2", "gpu3", "not tried", "gpu4"]
    assert [text for text in picture.texts if text in heads] == [*heads[:-1], "gpu4", "not tried"]
    second, first = picture.scale(), picture.bars[0]
    began = {each.y: each.x for each in reversed(picture.bars)}
    lanes = sorted(began)
    assert began[lanes[1]] == began[lanes[2]] == pytest.approx(first.x + 3.8 * second, abs=0.3)
    back = picture.bars[4]
    assert (back.classes, back.y) == ("wake", first.y)
    assert back.x == pytest.approx(first.x + (3.8 + 9.2 + 0.5 - 0.1) * second, abs=0.3)
    # What they have in common is not said of each.
    assert "3.8 s, switched" in picture.texts
    assert "9.2 s, failed, old stays" in picture.texts


def test_hosts_that_keep_their_model_are_left_out() -> None:
    assert Picture([row("gpu1", wave=1), row("gpu2", wave=None, result="kept")]).texts[0].startswith("gpu1: ")


def test_where_nothing_was_done_it_says_so() -> None:
    for rows in ([row("gpu1", to="old", seconds=0.02, result="unchanged", steps=[])], [{"host": "gpu1"}]):
        picture = Picture(rows)
        assert picture.bars == []
        assert "nothing was done" in picture.texts
    assert Picture([{"host": "gpu1"}, {"host": "gpu2"}]).bars == []


def test_a_plan_has_no_times() -> None:
    planned = [{**done, "started_seconds": None, "seconds": None} for done in STEPS]
    assert Picture([row("gpu1", steps=planned, result="would switch")]).bars == []


def test_every_action_has_a_look() -> None:
    steps = [step(action, "m", number, 0.5) for number, action in enumerate(ACTIONS)]
    picture = Picture([row("gpu1", steps=[*steps, step("unheard-of", "m", 9, 1)])])
    assert [each.classes for each in picture.bars] == [*ACTIONS, "wait"]
    style = str(picture.root.findtext(f"{SVG}style"))
    for action in ACTIONS:
        # Light and dark.
        assert len(re.findall(rf"\.{action} {{ fill: #", style)) == 2


def test_odd_names_and_times() -> None:
    odd = 'a<b>&"\x1b[0m\ud7ff' + "long" * 40
    steps = [step("wake", odd, 0.0, 0.0), step("verify", odd, 0.0, 86400.0)]
    picture = Picture([row(odd, **{"from": odd}, to=None, steps=steps, seconds=86400.0)])
    assert len(picture.bars) == 2
    Picture([row(odd, wave=1, steps=steps), row("b", wave=1)])


@pytest.mark.parametrize("wrong", [[], {}, "text", [{"steps": []}], [None]])
def test_what_is_no_list_of_rows(wrong: object) -> None:
    with pytest.raises(AnsibleFilterError, match="with the key host"):
        timeline(wrong)
