# SPDX-License-Identifier: MIT
"""Two real vLLM servers (CPU build) in containers that the project's own compose files describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.stack import CPU_IMAGE, PLAY, Stack, contained
from tests.playbooklib import Ansible, complete, is_sleeping

pytestmark = pytest.mark.timeout(1800)
A, B = "tiny-a", "tiny-b"
# What a server on two CPU cores needs; a CPU can't hold the sleep mode's memory, and the image leaves that flag out.
ARGS = {"max_model_len": 1024, "max_num_seqs": 4, "enforce_eager": True}
ENV = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture(scope="module")
def real(provision: Callable[..., tuple[Stack, Ansible]]) -> Iterator[tuple[Stack, Ansible]]:
    models = [
        contained(name, model=f"/models/{name}", startup_mode=mode, args=ARGS, env=ENV)
        for name, mode in ((A, "active"), (B, "sleep"))
    ]
    stack, ansible = provision(models, image=CPU_IMAGE)
    ansible.play("site", timeout=PLAY).changed()
    ansible.play("bootstrap", timeout=400).changed()
    yield stack, ansible


def test_switch_moves_a_completion_from_one_to_the_other(real: tuple[Stack, Ansible]) -> None:
    stack, ansible = real
    port = {name: stack.port(name) for name in (A, B)}
    before = stack.seen()
    assert (is_sleeping(port[A]), is_sleeping(port[B])) == (False, True)
    said_by_a = complete(port[A], A, 32)["text"]

    assert ansible.play("switch", "-e", f"model={B}", timeout=PLAY).changed() == 1
    assert (is_sleeping(port[A]), is_sleeping(port[B])) == (True, False)
    said_by_b = complete(port[B], B, 32)["text"]
    # The two have other weights: by its greedy answer each can be told.
    assert said_by_b
    assert said_by_b != said_by_a

    assert ansible.play("switch", "-e", f"model={A}", timeout=PLAY).changed() == 1
    assert (is_sleeping(port[A]), is_sleeping(port[B])) == (False, True)
    assert complete(port[A], A, 32)["text"] == said_by_a
    # Asleep and awake in the very containers that the bootstrap started.
    assert stack.seen() == before
    assert ansible.play("status").table[0][1:3] == [A, "active"]


def test_both_run_what_the_compose_files_say(real: tuple[Stack, Ansible]) -> None:
    _stack, ansible = real
    assert ansible.play("site", timeout=PLAY).changed() == 0
    assert ansible.play("bootstrap", timeout=PLAY).changed() == 0
