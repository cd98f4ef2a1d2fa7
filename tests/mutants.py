# SPDX-License-Identifier: MIT
"""Breaks the engine in many places, one at a time, and tells which tests notice.

    python -m tests.mutants                    all; the last line is `N mutants, K killed, S survived`
    python -m tests.mutants --only lock        those whose name begins so
    python -m tests.mutants --list             their names, and what each breaks

A mutant is one small replacement in the source, made in a copy of this checkout. The engine's unit tests run on it,
those of its own room first, until one fails; where none does, those cells of the fault matrix that the mutant names.
One that no longer fits the source is an error: whoever changes that line changes the mutant. Those that nothing can
notice say why (`reason`); they are counted as survivors that are known.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.serverlib import ROOT

ENGINE = "plugins/module_utils/switching"
UNIT = "tests/unit/plugins/module_utils/switching"
# A mutant may well hang what it breaks.
TESTS_SECONDS, CELLS_SECONDS, ONE_TEST_SECONDS = 900.0, 300.0, 120
NOTHING_FAILED = 0
SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file of the engine."""

    name: str
    file: str
    old: str
    new: str
    breaks: str  # for a reader
    tests: tuple[str, ...] = ()  # which of the engine's unit tests run first, test_FILE before all others
    cells: tuple[str, ...] = ()  # of the matrix, where no unit test notices
    reason: str = ""  # why nothing can notice


MUTANTS = (
    # ---- the gateway's gates ----
    Mutant(
        "gates/not-asked",
        "executor.py",
        "if step.action in _DISTURBING:",
        "if step.action not in _DISTURBING:",
        "a server is put to sleep while the gateway may send it requests",
        ("gates",),
    ),
    Mutant(
        "gates/any-answer",
        "gates.py",
        "return isinstance(told, Answer) and told.ask == ask and names <= told.closed",
        "return isinstance(told, Answer) and names <= told.closed",
        "what the manager has answered to somebody else counts",
        ("gates",),
    ),
    Mutant(
        "gates/of-some",
        "gates.py",
        "return isinstance(told, Answer) and told.ask == ask and names <= told.closed",
        "return isinstance(told, Answer) and told.ask == ask",
        "gates count as closed that the manager has not closed",
        ("gates",),
    ),
    Mutant(
        "gates/waited-for-again",
        "gates.py",
        "0.0 if told == lock.unanswered else ANSWER_SECONDS",
        "ANSWER_SECONDS",
        "a manager that hangs holds each part of a switch up",
        ("gates",),
    ),
    Mutant(
        "gates/given-up-for-good",
        "gates.py",
        "0.0 if told == lock.unanswered else ANSWER_SECONDS",
        "0.0 if lock.unanswered else ANSWER_SECONDS",
        "a manager that is back is not waited for by the rest of the switch",
        ("gates",),
    ),
    Mutant(
        "gates/one-look-is-enough",
        "gates.py",
        "return now - blind_since >= _UNSEEN_SECONDS",
        "return True",
        "an answer that can't be read for a moment is not waited for",
        ("gates",),
    ),
    Mutant(
        "desired_state/read-leniently",
        "desired_state.py",
        "before = state_files.read_or_raise(stack_dir, state_files.DESIRED_STATE)",
        "before = state_files.read(stack_dir, state_files.DESIRED_STATE)",
        "a record that can't be read is replaced",
        ("desired_state", "state_files"),
    ),
    Mutant(
        "gates/can-not-tell-is-nobody",
        "lock.py",
        "except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):",
        "except (OSError, ValueError, TypeError, KeyError, AttributeError):",
        "a question is taken for over while the lock can't be read",
        ("test_lock",),
    ),
    Mutant(
        "gates/overdue-for-ever",
        "gates.py",
        " or name in self._overdue",
        "",
        "a drain that comes again waits for the same requests of the gateway as the first one",
        ("gates",),
    ),
    Mutant(
        "gates/requests-on-their-way",
        "executor.py",
        "drain.before = functools.partial(self.gates.wait_until_idle, step.model)",
        "pass",
        "a request that the gateway has sent comes after its server was paused",
        ("gates",),
    ),
    Mutant(
        "gates/believed-for-ever",
        "gates.py",
        "return silent or (",
        "return (",
        "a manager that hangs holds a drain up until its time is over",
        ("gates",),
    ),
    Mutant(
        "gates/asked-after-the-end",
        "lock.py",
        """            if self._asked:
                self._asked = None
""",
        """            if self._asked:
""",
        "what was asked for is left in the file of a lock that nobody holds",
        ("gates",),
    ),
    # ---- time ----
    Mutant(
        "time/answer-without-end",
        "http_connection.py",
        "left = self.until - time.monotonic()",
        "left = 30.0",
        "an answer that drips is waited for, byte by byte, for ever",
        ("server",),
    ),
    Mutant(
        "time/stale-connection",
        "http_connection.py",
        "if fresh and self._socket is not None and not self.tls and not self._has_news():",
        "if self._socket is not None:",
        "a connection that the server has closed meanwhile is used again",
        ("server",),
    ),
    Mutant(
        "time/wait-half",
        "host.py",
        "if waited >= seconds:",
        "if waited * 2 >= seconds:",
        "everything is waited for half as long as is set",
        ("switch", "drain"),
    ),
    Mutant(
        "time/no-look-at-the-process",
        "host.py",
        "if look and now >= next_look:",
        "if False:",
        "a server that ends while it loads is waited for to the end",
        ("switch",),
    ),
    Mutant(
        "time/deadline-starts-anew",
        "drain.py",
        "return max(0.0, self._until - self.clock())",
        "return self.settings.drain_timeout_seconds",
        "a drain that was broken off begins its deadline anew",
        ("drain",),
    ),
    Mutant(
        "time/no-backoff",
        "switch.py",
        "if 0 < left <= rest:",
        "if False:",
        "a host has no rest after a switch that failed",
        ("switch",),
    ),
    Mutant(
        "time/clock-set-back",
        "transition.py",
        "if 0 < seconds <= least]",
        "if 0 < seconds]",
        "min_active_seconds is waited for for years where the clock was set back",
        ("lock",),
    ),
    Mutant(
        "awake/unread-level",
        "server.py",
        "elif asleep and told.unread and able.modes:",
        "elif False:",
        "a server that is only paused counts as asleep where its metrics can't be read",
        ("server", "switch"),
    ),
    Mutant(
        "awake/unread-sleep",
        "server.py",
        "if told.unread and self.abilities().modes:",
        "if False:",
        "a server that was only paused has proved its sleep where its metrics can't be read",
        ("server", "switch"),
    ),
    Mutant(
        "awake/unread-for-ever",
        "executor.py",
        "if self.host.clock() - told >= patience:",
        "if False:",
        "metrics that can never be read are waited for as long as for a sleep, and the server is told to be awake",
        ("switch",),
    ),
    Mutant(
        "awake/one-engine-sleeps",
        "server.py",
        "return told.level != 0 and not told.at_odds",
        "return told.level != 0",
        "the sleep of one of two engines is taken for that of both",
        ("server",),
    ),
    Mutant(
        "time/last-call-of-a-look",
        "server.py",
        "            if not last:\n                raise  # it may be gone since the call before",
        "            pass",
        "a server that is gone by the last call of a look counts as active",
        ("server",),
    ),
    Mutant(
        "time/not-looked-again",
        "transition.py",
        "if self._wait_min_active(model, before, plan, executor):",
        "if self._wait_min_active(model, before, plan, executor) and False:",
        "after a wait for min_active_seconds the plan is still that of before",
        ("lock",),
    ),
    # ---- locks and what they remember ----
    Mutant(
        "lock/entered-unlocked",
        "lock.py",
        "if not take() and not wait(take, seconds):",
        "if not take() and not wait(lambda: True, seconds):",
        "who waits for the lock goes on without it",
    ),
    Mutant(
        "lock/shared",
        "lock.py",
        "taken = _try(self.descriptor, fcntl.LOCK_EX)",
        "taken = _try(self.descriptor, fcntl.LOCK_SH)",
        "two switches hold the lock at once",
    ),
    Mutant(
        "lock/doubt-unread",
        "lock.py",
        'self.begun = {str(m): Begun(str(action), float(at)) for m, (action, at) in saved["begun"].items()}',
        "self.begun = {}",
        "the next switch does not know of a wake that was cut off",
        ("lock", "switch"),
    ),
    Mutant(
        "lock/doubt-unwritten",
        "lock.py",
        "self.begun[name] = Begun(action, round(time.time(), 3))\n            self._write()",
        "self.begun[name] = Begun(action, round(time.time(), 3))",
        "a wake is not written down before it begins",
        ("lock", "switch"),
    ),
    Mutant(
        "lock/doubt-for-ever",
        "lock.py",
        "if self.begun.pop(name, None):",
        "if self.begun.get(name):",
        "a model stays in doubt for ever",
        ("lock", "switch"),
    ),
    Mutant(
        "lock/failure-forgotten",
        "lock.py",
        "self.failed_at = max(self.failed_at, failed_at)",
        "self.failed_at = failed_at",
        "of two switches side by side the one that ended well hides that the other failed",
    ),
    Mutant(
        "lock/peek-while-held",
        "lock.py",
        "if _try(file.fileno(), fcntl.LOCK_SH):",
        "if True:",
        "a report takes a wake that is under way for one that was cut off",
    ),
    Mutant(
        "lock/woken-without-doubt",
        "executor.py",
        "        self.host.lock.begin(step.model, WAKE)\n",
        "",
        "a wake is not written into the lock",
        ("switch",),
    ),
    Mutant(
        "lock/settled-by-the-wake",
        "executor.py",
        "if step.action in (STOP, SLEEP, VERIFY):",
        "if step.action in (STOP, SLEEP, VERIFY, WAKE):",
        "a wake counts as proved when its calls were answered",
        ("lock",),
    ),
    # ---- requests ----
    Mutant(
        "requests/cut-by-the-sleep",
        "executor.py",
        'server.sleep(step.level or 1, self._modes.get(step.model, "wait"))',
        'server.sleep(step.level or 1, "abort")',
        "a sleep cuts what came since the drain",
        ("drain", "switch"),
    ),
    Mutant(
        "requests/waiting-not-counted",
        "drain.py",
        "return self._gone or self._last == (0, 0)",
        "return self._gone or (self._last is not None and self._last[0] == 0)",
        "a server counts as idle while requests wait in it",
    ),
    Mutant(
        "requests/busy-is-gone",
        "drain.py",
        "return False  # a busy server is no reason to stop it",
        "self._gone = True",
        "a server that does not answer while it drains counts as ended",
    ),
    Mutant(
        "requests/fail-cuts",
        "drain.py",
        'if action == "abort":',
        'if action in ("abort", "fail"):',
        "drain_timeout_action fail cuts the requests",
    ),
    Mutant(
        "requests/parked-in-what-ends",
        "drain.py",
        'if action == "keep" and able and can_cut and not self.ending:',
        'if action == "keep" and able and can_cut:',
        "requests are parked in a server that is to be stopped",
    ),
    Mutant(
        "requests/not-resumed",
        "drain.py",
        "        if self.held:\n            self._resume()\n",
        "",
        "a drain that failed leaves its server paused",
    ),
    Mutant(
        "requests/not-resumed-at-the-end",
        "recovery.py",
        "self.host.servers[name].resume()",
        "pass",
        "a switch that failed leaves a server paused",
        ("drain", "switch"),
    ),
    Mutant(
        "requests/stopped-undrained",
        "recovery.py",
        "except (DrainTimeout, NoMemory, NoSuchAnswer):",
        "except (NoMemory, NoSuchAnswer):",
        "a drain that may cut nothing ends in a stop",
        ("drain", "switch"),
    ),
    Mutant(
        "requests/cut-not-told",
        "recovery.py",
        "CUT: None if None in lost else sum(lost)}",
        "CUT: 0}",
        "what a stop has cut is not told",
        ("drain", "switch"),
    ),
    Mutant(
        "requests/old-servers-asked-to-drain",
        "versions.py",
        "modes=release >= (0, 17)",
        "modes=release >= (0, 1)",
        "a server that knows no modes is asked to drain, and sleeps",
        ("server", "drain"),
    ),
    Mutant(
        "requests/of-one-engine-alone",
        "metrics.py",
        "int(sum(read))",
        "int(read[-1])",
        "of several engines only the last one's requests are counted",
        ("server",),
    ),
    # ---- two awake ----
    Mutant(
        "awake/before-others-sleep",
        "plan.py",
        "return [dead, displaced, *self._bring_up(model)]",
        "return [dead, *self._bring_up(model), displaced]",
        "the target wakes before the others sleep",
    ),
    Mutant(
        "awake/doubt-in-the-way",
        "plan.py",
        "elif seen.state == LOADING or (seen.state == SLEEPING and seen.doubtful):",
        "elif seen.state == LOADING:",
        "a sleeper that is half awake stays on the GPU",
    ),
    Mutant(
        "awake/paused-is-asleep",
        "plan.py",
        "elif seen.state == ACTIVE or seen.paused:\n                lanes",
        "elif seen.state == ACTIVE:\n                lanes",
        "a server that was only paused stays on the GPU",
    ),
    Mutant(
        "awake/unconfirmed-sleep",
        "executor.py",
        "if not self.host.wait(asleep, self.settings.request_timeout_seconds):",
        "if False:",
        "a sleep counts as done when its call was answered",
        ("switch",),
    ),
    Mutant(
        "awake/unconfirmed-stop",
        "executor.py",
        "if not self.host.wait(gone, self.settings.request_timeout_seconds):",
        "if False:",
        "a stop counts as done though the port still answers",
        ("switch",),
    ),
    Mutant(
        "awake/children-left",
        "lifecycle.py",
        "if self._pid() is None and not processes.members(group):",
        "if self._pid() is None:",
        "a stop leaves the engine's process, which holds the GPU",
    ),
    Mutant(
        "awake/started-beside-what-is-left",
        "lifecycle.py",
        "if not self.model.stop_command and self._group() is not None:",
        "if False:",
        "a start leaves what an earlier start has left",
    ),
    Mutant(
        "awake/never-killed",
        "lifecycle.py",
        "for number in (signal.SIGTERM, signal.SIGKILL):",
        "for number in (signal.SIGTERM,):",
        "a server that does not heed SIGTERM stays",
    ),
    Mutant(
        "awake/loading-is-stopped",
        "host.py",
        "if (seen.state in (STOPPED, LOADING) and running) or (listens and running is None):",
        "if seen.state == LOADING and running:",
        "a server that still loads counts as stopped",
        ("switch",),
    ),
    # ---- what wakes is right ----
    Mutant(
        "right/no-reload",
        "server.py",
        'Request("/wake_up?tags=weights"), _RELOAD[0], Request(',
        'Request("/wake_up?tags=weights"), Request(',
        "a wake from level 2 loads no weights",
    ),
    Mutant(
        "right/doubt-at-its-level",
        "plan.py",
        "None if seen.doubtful else seen.level",
        "seen.level",
        "what is half awake is woken as the gauge says",
    ),
    Mutant(
        "right/retry-at-level-1",
        "recovery.py",
        "steps = [again, Step(VERIFY, name)]",
        "steps = [Step(WAKE, name, 1), Step(VERIFY, name)]",
        "a wake that failed is tried again without the weights",
        ("switch",),
        ("reload/500/once",),
    ),
    Mutant(
        "right/ready-asleep",
        "readiness.py",
        "return not server.is_sleeping()",
        "return True",
        "a server that still sleeps counts as ready",
        ("switch",),
    ),
    Mutant(
        "right/another-server",
        "server.py",
        "        self._check_identity()\n        asleep",
        "        asleep",
        "another model's server on the port counts as this one's",
    ),
    Mutant(
        "right/dead-is-healthy",
        "server.py",
        "if error.status == 503:\n                return False",
        "if error.status == 503:\n                return True",
        "a dead engine counts as healthy",
    ),
    Mutant(
        "right/wrong-stays-awake",
        "recovery.py",
        "for name in sorted(self.executor.readiness.wrong):",
        "for name in ():",
        "a server that answers wrongly stays awake when the switch fails",
        ("switch",),
        ("canary/wrong-text",),
    ),
    # ---- records ----
    Mutant(
        "record/wrong-answer-recorded",
        "canary.py",
        "if came != WOKEN and not refused and (known is None or other):",
        "if not refused and (known is None or other):",
        "the answer after a mere wake is recorded as the right one",
    ),
    Mutant(
        "record/recovered-by-a-restart",
        "canary.py",
        "if not known.suspect and (came == STARTED or (came == RESTARTED and known.renewed)):",
        "if not known.suspect and came != WOKEN:",
        "after a restart for a failure any answer is taken for right",
    ),
    Mutant(
        "record/suspicion-forgotten",
        "canary.py",
        "if not known.suspect and (came == STARTED or (came == RESTARTED and known.renewed)):",
        "if came == STARTED or (came == RESTARTED and known.renewed):",
        "after a refused answer, any answer of the next start is taken for right",
    ),
    # ---- adapters ----
    Mutant(
        "adapter/lost-at-the-wake",
        "adapters.py",
        "if told.is_as(kind, known.text):",
        "if told.is_as(kind, known.text) or told.is_as(kind, self.record.text):",
        "an adapter that answers as the bare model counts as right",
    ),
    Mutant(
        "adapter/swapped",
        "adapters.py",
        "if told.is_as(kind, known.text):",
        "if any(told.is_as(kind, one.text) for one in self.known.values()):",
        "an adapter that answers as another one counts as right",
    ),
    Mutant(
        "adapter/missing",
        "adapters.py",
        "elif before is not None and name not in before:",
        "elif True:",
        "an adapter that is not listed after a wake counts as removed",
    ),
    Mutant(
        "adapter/removed",
        "adapters.py",
        "elif before is not None and name not in before:",
        "elif False:",
        "an adapter that was removed from an awake server, or from one that slept, counts as a failed wake",
    ),
    Mutant(
        "adapter/of-an-unknown-start",
        "readiness.py",
        "if model.id in self.begun and not start:",
        "if False:",
        "what a start that nobody knows of has lost counts as removed by intent",
        ("adapters",),
    ),
    Mutant(
        "adapter/listed-by-a-second-look",
        "executor.py",
        "        self.readiness.listed.setdefault(step.model, server.adapters)\n",
        "",
        "an adapter that a wake has lost counts as removed before it when it is looked for once more",
        ("adapters",),
    ),
    Mutant(
        "adapter/unproved",
        "readiness.py",
        "verdict = verdict.also(adapters.prove(server, model, self.host.stack_dir, start, came, before))",
        "del adapters, before",
        "adapters are not asked after a wake",
        ("adapters",),
    ),
    Mutant(
        "adapter/only-those-listed",
        "readiness.py",
        "return known is not None and bool(known.adapters)",
        "return False",
        "adapters that are recorded are not looked for where the server lists none",
        ("adapters",),
    ),
    Mutant(
        "adapter/recorded-after-a-wake",
        "adapters.py",
        'elif came == canary.WOKEN:\n            look.notes.append(f"adapter {printable(name)} is not recorded yet")',
        'elif False:\n            look.notes.append(f"adapter {printable(name)} is not recorded yet")',
        "what an adapter answers after a mere wake is recorded as right",
    ),
    Mutant(
        "adapter/recorded-beside-garbage",
        "adapters.py",
        "if new and not server.route_canary(",
        "if False and not server.route_canary(",
        "adapters are recorded while the model itself answers wrongly",
    ),
    Mutant(
        "adapter/never-recorded-later",
        "executor.py",
        "usual = seen is not None and seen.state == ACTIVE and not seen.held",
        "usual = False",
        "adapters that came at run time are never recorded",
        ("adapters",),
    ),
    Mutant(
        "adapter/slow-sleep",
        "adapters.py",
        "left = until - time.monotonic() if until else None",
        "left = None",
        "a sleep waits for the answers of adapters as long as they take",
    ),
    Mutant(
        "adapter/wake-without-end",
        "adapters.py",
        "            if time.monotonic() >= self.until:",
        "            if False:",
        "a wake waits for the answers of all adapters, however many there are",
    ),
    Mutant(
        "adapter/forgotten-unproved",
        "executor.py",
        "        usual = usual and step.model not in self.readiness.begun\n",
        "",
        "adapters that a wake has lost are forgotten when that is undone before anybody has noticed",
        ("adapters",),
    ),
    Mutant(
        "adapter/not-loaded-again",
        "adapters.py",
        "elif look.load_again(name, known):",
        "elif False:",
        "what a restart loses is not loaded again",
    ),
    Mutant(
        "adapter/start-by-intent",
        "adapters.py",
        "if (by_intent and not known.suspect) or (came",
        "if (came",
        "after a start by intent another answer of an adapter is refused",
    ),
    Mutant(
        "adapter/restart-believed",
        "adapters.py",
        "by_intent = came == canary.STARTED or (came == canary.RESTARTED and known.renewed)",
        "by_intent = True",
        "after a restart for a failure any answer of an adapter is taken for right",
    ),
    Mutant(
        "adapter/suspicion-forgotten",
        "adapters.py",
        "if (by_intent and not known.suspect) or (came",
        "if by_intent or (came",
        "after a refused answer, any answer of the next start is taken for right",
    ),
    Mutant(
        "adapter/lost-before",
        "adapters.py",
        " or (came != canary.WOKEN and known.is_undecidable(kind)):",
        ":",
        "an adapter that was lost when it was recorded is refused for good when a restart has brought it back",
    ),
    Mutant(
        "adapter/restart-taken-for-removal",
        "adapters.py",
        "if not look.is_of_another_start(known[name]):",
        "if True:",
        "what a restart by somebody else has lost is forgotten before the sleep",
    ),
    Mutant(
        "adapter/of-another-path",
        "adapters.py",
        "if adapter.path != path:",
        "if False:",
        "an adapter from another path is compared with what the earlier one answered",
    ),
    Mutant(
        "adapter/of-another-model",
        "adapters.py",
        "return Reply(self.record.kind, adapter.base).is_as(self.record.kind, self.record.text)",
        "return True",
        "answers on the weights of before an exchange are still compared",
    ),
    Mutant(
        "adapter/route-gone",
        "adapters.py",
        "(certain or known.reproducible)):\n            renewed",
        "known.reproducible and not certain):\n            renewed",
        "a route that does not answer is only warned of",
    ),
    Mutant(
        "record/half-written",
        "state_files.py",
        'new = path(stack_dir, name) + ".new"',
        "new = path(stack_dir, name)",
        "a record is written in place, so that a kill leaves half of it",
    ),
    Mutant(
        "record/readable",
        "state_files.py",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)",
        "everybody may read the records",
    ),
    Mutant(
        "record/log-readable",
        "lifecycle.py",
        "os.O_TRUNC | os.O_APPEND, 0o600)",
        "os.O_TRUNC | os.O_APPEND, 0o644)",
        "everybody may read the servers' logs",
    ),
    Mutant(
        "record/pid-of-another",
        "lifecycle.py",
        "lives = started is not None and processes.start_time(pid) == started and boot in (None, processes.boot_id())",
        "lives = started is not None and processes.start_time(pid) is not None and boot in (None, processes.boot_id())",
        "a process that got the id of one that ended is taken for the server",
    ),
    Mutant(
        "record/group-of-another-boot",
        "lifecycle.py",
        "return pid if gone and boot is not None and boot == processes.boot_id() and processes.members(pid) else None",
        "return pid if gone and processes.members(pid) else None",
        "a process group of another boot is ended",
    ),
    Mutant(
        "record/two-desired-active",
        "desired_state.py",
        "made_room = {name: SLEEPING for name in conflicting if desired.get(name) == ACTIVE}",
        "made_room = {name: SLEEPING for name in () if desired.get(name) == ACTIVE}",
        "after a boot the host would come back to two active models on one GPU",
    ),
    Mutant(
        "record/nothing-to-take-back",
        "desired_state.py",
        "displaced = list(displaced) or _displaced(before)",
        "displaced = list(displaced)",
        "a switch that displaced nobody makes a roll back forget whom",
    ),
    # ---- other people ----
    Mutant(
        "others/roll-back-over-a-switch",
        "switch.py",
        "if displaced and desired_state.last_displaced(self.stack_dir) != list(displaced):",
        "if False:",
        "a roll back takes back what somebody switched meanwhile",
        ("roll_back",),
    ),
    Mutant(
        "others/restore-over-a-switch",
        "switch.py",
        "models = tuple(m for m in batch if is_desired(m, desired))",
        "models = tuple(batch)",
        "a restore that waited for the lock undoes what was switched meanwhile",
        ("desired_state", "switch"),
    ),
    Mutant(
        "others/interrupted-amid-lanes",
        "host.py",
        "while not all(future.done() for future in others):",
        "while interrupted is None and not all(future.done() for future in others):",
        "after Ctrl-C the lock is let go while steps still run",
        ("switch",),
    ),
    Mutant(
        "others/interrupt-leaves-it",
        "transition.py",
        "            recovery.roll_back(model, desired, before, error)\n            raise",
        "            raise",
        "after Ctrl-C nothing is put back",
        ("switch",),
    ),
    Mutant(
        "others/memory-not-looked-at",
        "executor.py",
        "if (need or shared) and step.model not in self.host.lock.doubtful:",
        "if False:",
        "a server is woken into memory that somebody else holds",
        ("switch_memory",),
    ),
    Mutant(
        "others/secrets-in-the-log",
        "host.py",
        "return [self.mask(line) for line in self.lifecycles[model.id].last_lines()]",
        "return list(self.lifecycles[model.id].last_lines())",
        "the lines of a log that are shown have the secrets in them",
        ("switch",),
    ),
    # ---- slow, half awake, and whatever happened meanwhile ----
    Mutant(
        "time/silent-is-dead",
        "host.py",
        "dead=(seen.dead or seen.unknown) and not unknown,",
        "dead=seen.dead or seen.unknown,",
        "a server that gives no answer in time is stopped with its requests",
        ("switch",),
    ),
    Mutant(
        "time/silent-not-waited-for",
        "transition.py",
        "while set(self._unanswering(before, plan)) - waited:",
        "while False:",
        "a server that is slow is not waited for before it is stopped",
    ),
    Mutant(
        "requests/idle-not-paused",
        "drain.py",
        "able = not self.by_looking and self._able()",
        "able = not self.by_looking and not idle and self._able()",
        "a request that comes after the look keeps the sleep waiting",
    ),
    Mutant(
        "requests/rung-stop-undrained",
        "recovery.py",
        "if not self.executor.drained(name) and self.executor.running(name):",
        "if False:",
        "a server that would not sleep is stopped with its requests",
        ("switch",),
    ),
    Mutant(
        "requests/run-before-the-reload",
        "versions.py",
        "reload_last=not (0, 17) <= release < (0, 24),",
        "reload_last=True,",
        "on 0.17 to 0.23 what is held is answered from weights that are not there",
        ("versions",),
    ),
    Mutant(
        "awake/half-awake-believed",
        "versions.py",
        "tells_half=release >= (0, 31),",
        "tells_half=True,",
        "before 0.31 a server that is half awake counts as one that only pauses",
        ("versions", "server"),
    ),
    Mutant(
        "awake/paused-did-not-serve",
        "plan.py",
        "return self.state == ACTIVE or self.paused or self.was_serving",
        "return self.state == ACTIVE or self.was_serving",
        "a model that a killed drain has left paused is not put back",
        ("switch",),
    ),
    Mutant(
        "awake/end-not-looked-at",
        "transition.py",
        "if desired == ACTIVE and any(after[name].state == ACTIVE for name in rivals):",
        "if False:",
        "who was woken meanwhile stays awake beside the one that was asked for",
    ),
    Mutant(
        "right/never-proved-again",
        "transition.py",
        "if not stays or not model.ready_completion or self._is_proved(model):",
        "if True:",
        "a model that is active already is promised to be right, and nothing is asked",
    ),
    Mutant(
        "right/proof-of-another-start",
        "host.py",
        "return bool(start) and start == self.lifecycles[model.id].start_id()",
        "return bool(start)",
        "a server that was started anew counts as proved",
    ),
    Mutant(
        "right/proved-before-it-slept",
        "executor.py",
        "        self.host.lock.begin(step.model, SLEEP)\n        self.host.forget_proof(step.model)\n",
        "        self.host.lock.begin(step.model, SLEEP)\n",
        "what somebody woke after a sleep counts as proved",
        ("switch",),
    ),
    Mutant(
        "requests/deaf-is-idle",
        "host.py",
        "problem=problem, dead=True, uncounted=True, process=True",
        "problem=problem, dead=True, process=True",
        "what the stop of a server cuts that refuses connections is not told",
        ("switch",),
    ),
    Mutant(
        "right/restart-for-want-of-text",
        "recovery.py",
        "except (DrainTimeout, NoMemory, NoSuchAnswer):",
        "except (DrainTimeout, NoMemory):",
        "a healthy server is restarted since it knows no call that would prove it",
        ("kinds",),
    ),
    Mutant(
        "right/any-vector",
        "kinds.py",
        "return apart <= _FARTHEST_SHARE * max(length, shortest)",
        "return True",
        "a vector of other weights counts as the recorded one",
        ("kinds",),
    ),
    Mutant(
        "right/loading-is-dead",
        "server.py",
        "return not self.version()",
        "return False",
        "a server that listens while it loads is stopped",
        ("kinds", "server"),
    ),
    Mutant(
        "record/begun-forgotten",
        "host.py",
        "comes = begun is not None and begun.action in (START, WAKE)",
        "comes = False",
        "a model that a killed switch was starting is not what served",
        ("switch",),
    ),
    # ---- memory ----
    Mutant(
        "memory/level-1-without-a-budget",
        "plan.py",
        "        self.sleeping_gb += weights\n",
        "",
        "of several models that go to sleep each has the whole budget",
    ),
    Mutant(
        "memory/copy-not-counted",
        "plan.py",
        "fits_host = free is None or weights + transient <= free",
        "fits_host = free is None or weights <= free",
        "a host runs out of memory while the weights are copied",
    ),
    Mutant(
        "memory/level-1-in-shared-memory",
        "plan.py",
        "small = self.shared or budget",
        "small = budget",
        "where CPU and GPU share their memory the weights go from it into it",
        ("plan",),
    ),
    Mutant(
        "memory/number-and-uuid-apart",
        "gpus.py",
        "mine & theirs or (numbers and other_wholes)",
        "mine & theirs or (numbers and False)",
        "a GPU that two models name in two ways is used by both",
        ("inventory",),
    ),
    # ---- drafts, and the first answer ----
    Mutant(
        "drafts/weights-of-none",
        "options.py",
        "not in _DRAFT_WITHOUT_WEIGHTS if method",
        "not in () if method",
        "drafts that come of the texts count as those of a draft model, which level 2 would lose",
        ("drafts",),
    ),
    Mutant(
        "drafts/auto-takes-level-2",
        "versions.py",
        "    if drafts and not able.reloads_drafts:",
        "    if False:",
        "sleep_level auto discards the weights of a draft model, which nothing reloads",
        ("drafts",),
    ),
    Mutant(
        "drafts/not-told-by-metrics",
        "server.py",
        "        self._drafts_told |= found.drafts\n",
        "",
        "of a server whose command does not tell that it speculates nobody knows",
        ("drafts",),
    ),
    Mutant(
        "drafts/not-measured-after-a-wake",
        "executor.py",
        "        if step.level != 1:\n            self.readiness.reloaded.add",
        "        if False:\n            self.readiness.reloaded.add",
        "a wake from level 2 that left a draft model without weights goes unseen",
        ("drafts",),
    ),
    Mutant(
        "drafts/measured-after-every-wake",
        "executor.py",
        "        if step.level != 1:\n            self.readiness.reloaded.add",
        "        if True:\n            self.readiness.reloaded.add",
        "every wake from level 1 waits for the measurement",
        ("drafts",),
    ),
    Mutant(
        "drafts/bad-ones-are-good",
        "readiness.py",
        "if fresh and not self.begun.get(model.id):",
        "if to_record or (fresh and not self.begun.get(model.id)):",
        "drafts that a wake left without weights are recorded as the good ones",
        ("drafts",),
    ),
    Mutant(
        "drafts/taken-on-trust",
        "readiness.py",
        "if fresh and not self.begun.get(model.id):",
        "if fresh:",
        "what a restart has made of the drafts is recorded, not compared",
        ("drafts",),
    ),
    Mutant(
        "drafts/restart-without-the-rung",
        "readiness.py",
        ' and "restart" in self.host.settings.escalation',
        "",
        "drafts without weights fail a switch that must not restart their server",
        ("drafts",),
    ),
    Mutant(
        "drafts/retried-first",
        "recovery.py",
        " and not isinstance(error, IdleDrafts)",
        "",
        "drafts without weights are measured again before the restart that alone helps",
        ("drafts",),
    ),
    Mutant(
        "drafts/measured-for-nothing",
        "readiness.py",
        "(fresh and self._may_sleep_at_level_2(model))",
        "fresh",
        "every start of a model that never sleeps at level 2 waits for the measurement",
        ("drafts",),
    ),
    Mutant(
        "drafts/restart-that-may-not-cut",
        "recovery.py",
        "if isinstance(error, IdleDrafts) and isinstance(second",
        "if False and isinstance(second",
        "a switch fails since its model, which answers correctly, can't be restarted for its drafts",
        ("drafts",),
    ),
    Mutant(
        "drafts/few-are-enough",
        "drafts.py",
        "now is None or now.drafted < LEAST_DRAFTED",
        "now is None or not now.drafted",
        "a few tokens are taken for a measurement",
        ("drafts",),
    ),
    Mutant(
        "drafts/half-is-too-little",
        "drafts.py",
        "    fall = _FALL if alone else _FALL_AMONG_OTHERS",
        "    fall = 1 if alone else _FALL_AMONG_OTHERS",
        "any smaller share of accepted drafts is warned of",
        ("drafts",),
    ),
    Mutant(
        "drafts/load-of-others",
        "drafts.py",
        "    fall = _FALL if alone else _FALL_AMONG_OTHERS",
        "    fall = _FALL",
        "what others ask, whose texts are harder to draft for, is taken for drafts that are worth nothing",
        ("drafts",),
    ),
    Mutant(
        "drafts/load-without-end",
        "drafts.py",
        "if before and left > 0:",
        "if before:",
        "a slow server is asked for more drafts for as long as it takes",
        ("drafts",),
    ),
    Mutant(
        "first-answer/fails-the-switch",
        "executor.py",
        'first answer (first_answer_tokens) failed: {error}")\n            return',
        'first answer (first_answer_tokens) failed: {error}")\n            raise',
        "a switch fails although its model is ready",
        ("drafts",),
    ),
    Mutant(
        "first-answer/of-one-that-sleeps",
        "transition.py",
        'if step["action"] in (WAKE, START)]',
        "]",
        "a model that was put to sleep is asked for a first answer",
        ("drafts",),
    ),
    Mutant(
        "first-answer/too-long",
        "answers.py",
        "for index in range(min(prompt, room))]",
        "for index in range(prompt)]",
        "a prompt is longer than the model takes, so that there is no first answer",
        ("drafts",),
    ),
    # ---- the level by what it costs ----
    Mutant(
        "costs/equal-is-quicker",
        "costs.py",
        "abs(one - two) <= EQUAL_SHARE * max(one, two)",
        "one == two",
        "a level is changed for a difference that is none",
        ("costs",),
    ),
    Mutant(
        "costs/slower",
        "costs.py",
        "return 1 if one < two else 2",
        "return 2 if one < two else 1",
        "the level that takes longer is chosen",
        ("costs",),
    ),
    Mutant(
        "costs/unasked",
        "costs.py",
        "if measure and untried:",
        "if untried:",
        "a level that was never measured is tried although that was not asked for",
        ("costs",),
    ),
    Mutant(
        "costs/tried-again",
        "costs.py",
        "if not costs[level].failed and len(costs[level].sleep) < TRIES]",
        "if len(costs[level].sleep) < TRIES]",
        "a level that fails is tried with every switch",
        ("costs",),
    ),
    Mutant(
        "costs/past-the-ram",
        "plan.py",
        "choose(known(self.costs, model), no_level_1, no_level_2, measure)",
        'choose(known(self.costs, model), "", no_level_2, measure)',
        "a model sleeps at level 1 where the RAM does not hold it",
        ("costs", "plan"),
    ),
    Mutant(
        "costs/past-the-version",
        "plan.py",
        "choose(known(self.costs, model), no_level_1, no_level_2, measure)",
        'choose(known(self.costs, model), no_level_1, "", measure)',
        "a model sleeps at level 2 where its version can't",
        ("costs", "plan", "versions"),
    ),
    Mutant(
        "costs/sleep-alone",
        "costs.py",
        "return None if slept is None or woken is None else slept + woken",
        "return None if slept is None else slept + (woken or 0)",
        "a level whose wake was never measured counts as measured",
        ("costs",),
    ),
    Mutant(
        "costs/unverified",
        "result.py",
        'if parts[-1]["action"] != VERIFY or "escalation" in parts[-1]:',
        'if "escalation" in parts[-1]:',
        "a wake counts whose verification nobody has seen",
        ("costs",),
    ),
    Mutant(
        "costs/of-a-recovery",
        "result.py",
        'not in LEVELS or "escalation" in step:',
        "not in LEVELS:",
        "what a recovery took counts as what a level takes",
        ("costs",),
    ),
    Mutant(
        "costs/failed-is-quick",
        "result.py",
        'seconds = None if any("failed" in part for part in parts) else sum(part["seconds"] for part in parts)',
        'seconds = sum(part["seconds"] for part in parts)',
        "a step that fails at once makes its level the quickest",
        ("costs",),
    ),
    Mutant(
        "costs/all-kept",
        "costs.py",
        "sleep=(*self.sleep, measure.seconds)[-KEPT:]",
        "sleep=(*self.sleep, measure.seconds)",
        "the state file grows with every switch",
        ("costs",),
    ),
    Mutant(
        "costs/of-another-server",
        "costs.py",
        'if isinstance(found, dict) and found.get("served") == served(model) else None',
        "if isinstance(found, dict) else None",
        "what another model took decides, which was declared by the same id",
        ("costs",),
    ),
    Mutant(
        "costs/write-fails-the-switch",
        "transition.py",
        "with state_files.changing, contextlib.suppress(OSError):\n            content",
        "with state_files.changing:\n            content",
        "a switch that is done fails because its times can't be written",
        ("costs",),
    ),
    Mutant(
        "costs/stopped-for-its-version",
        "executor.py",
        "if step.choice and step.choice.measured and not",
        "if False and not",
        "a model that could sleep at level 1 is stopped",
        ("costs",),
    ),
    Mutant(
        "costs/tried-for-ever",
        "costs.py",
        " and len(costs[level].sleep) < TRIES]",
        "]",
        "a level is tried with every switch if its wakes never come to be measured",
        ("costs",),
    ),
    Mutant(
        "costs/failing-is-quick",
        "costs.py",
        "if costs[0].failing != costs[1].failing:",
        "if False:",
        "a level that was quick once is chosen although it fails each time",
        ("costs",),
    ),
    Mutant(
        "costs/one-failure",
        "costs.py",
        "return self.failed >= FAILING",
        "return self.failed >= 1",
        "a level is given up for one failure, which may have any reason",
        ("costs",),
    ),
    Mutant(
        "costs/others-memory",
        "transition.py",
        " or not isinstance(error, NoMemory)]",
        " or True]",
        "a level counts as failed because another process holds the GPU memory",
        ("costs",),
    ),
    # ---- what sleeps free ----
    Mutant(
        "freed/not-looked-at",
        "recovery.py",
        "if any(lane[-1].action == SLEEP for lane in stage):",
        "if False:",
        "a sleep that frees nothing is taken for one",
        ("freed",),
    ),
    Mutant(
        "freed/nothing-known-is-nothing-expected",
        "freed.py",
        "share, whole = _LEAST_OF_WEIGHTS, self._weights()",
        "share, whole = _LEAST_OF_WEIGHTS, self.usual",
        "the first sleep of a start may free nothing",
    ),
    Mutant(
        "freed/others-memory-is-its-own",
        "freed.py",
        "return exact[name] - self.series.last.get(name, 0.0) > whole * _LEAST_SHARE",
        "return True",
        "memory that another process has taken is held against a sleep, and the server is stopped",
    ),
    Mutant(
        "freed/old-figures-prove",
        "freed.py",
        "return bool(self.before) and self.alone",
        "return True",
        "what was free hours ago is held against a sleep where nobody tells what processes hold",
    ),
    Mutant(
        "freed/divided-gpus-judged",
        "freed.py",
        "return bool(gpus) and not any(gpu.unified or gpu.divided for gpu in gpus)",
        "return bool(gpus)",
        "what a GPU tells as a whole is held against a server that has a part of it",
    ),
    Mutant(
        "freed/not-waited-for",
        "freed.py",
        "self.host.wait(freed, self.host.settings.probe_timeout_seconds)",
        "freed()",
        "a server that gives its memory back slowly is stopped",
    ),
    Mutant(
        "freed/no-rung",
        "recovery.py",
        """            if "stop" not in self.settings.escalation:
                raise error
            self._stop_sleepless""",
        "            self._stop_sleepless",
        "a server is stopped although escalation has no stop",
        ("freed",),
    ),
    Mutant(
        "freed/kept-memory-is-missing",
        "executor.py",
        "kept = step.model in self.freed.kept",
        "kept = False",
        "after a sleep that freed nothing the former model is not woken, for want of the memory that it holds itself",
        ("freed",),
    ),
    Mutant(
        "freed/recovered-is-at-fault",
        "recovery.py",
        'causes = [step for step in failures if step["failed"] in str(error)] or failures[:1]',
        "causes = failures[:1]",
        "after a sleep that freed nothing, the log of that server is shown for what fails after it",
        ("freed",),
    ),
    Mutant(
        "freed/kept-when-seen",
        "freed.py",
        "        self.kept.add(name)\n",
        "        pass\n",
        "a switch that is interrupted while it waits for the memory of a sleep leaves no model awake",
        ("freed",),
    ),
    Mutant(
        "freed/own-memory-is-missing",
        "executor.py",
        " and not self.freed.has_kept(step.model, need or {})",
        "",
        "a server whose sleep has freed nothing, unseen, can't be woken, for want of the memory that it holds itself",
        ("freed",),
    ),
    Mutant(
        "freed/others-memory-is-enough",
        "freed.py",
        "held.get(gpu.index, 0.0) > need[called] * _LEAST_SHARE",
        "True",
        "a server is woken although others hold the memory that it needs",
        ("freed",),
    ),
    Mutant(
        "freed/looked-between",
        "freed.py",
        "            self._read_before(name, self._planned[name])\n",
        "            pass\n",
        "a drained server waits for nvidia-smi before it sleeps, and that counts as its sleep",
        ("freed",),
    ),
    Mutant(
        "freed/asked-in-vain-twice",
        "freed.py",
        "self._gpus = {} if looks else None",
        "self._gpus = None",
        "a switch waits twice for an nvidia-smi that hangs",
        ("freed",),
    ),
    Mutant(
        "freed/limit-not-kept-to",
        "transition.py",
        'if step["action"] == STOP and "failed" not in step:',
        'if step["action"] == STOP:',
        "a model that was put to sleep as asked counts as stopped because it could not be stopped at its limit",
        ("freed",),
    ),
    Mutant(
        "freed/levels-alike",
        "freed.py",
        "return self.series.freed.get(str(self.level), {})",
        "return next(iter(self.series.freed.values()), {})",
        "a sleep is compared with one at another level, which frees something else",
    ),
    Mutant(
        "freed/starts-alike",
        "freed.py",
        "            self.series = Series()  # somebody else has started it anew",
        "            pass",
        "what another start held counts for this one",
    ),
    Mutant(
        "freed/two-looks",
        "executor.py",
        """            gpus = self.freed.read_gpus()
            measured""",
        """            gpus = hardware.read_gpus()
            measured""",
        "each switch asks nvidia-smi once more",
        ("freed",),
    ),
    Mutant(
        "freed/reckoned-only",
        "freed.py",
        "if self.whole and (reckoned is None or self._is_odd(reckoned)):",
        "if self.whole and reckoned is None:",
        "what others hold counts as a leak",
    ),
    Mutant(
        "freed/limit-cuts",
        "recovery.py",
        "if any(number != 0 for number in (*parked, self.executor.running(name))):",
        "if False:",
        "requests that wait for the wake are cut at the limit",
        ("freed",),
    ),
    Mutant(
        "odometer/limit-of-others",
        "odometer.py",
        "if not limit_gb or series.fixed is None or len(series.held) < 2:",
        "if not limit_gb or len(series.held) < 2:",
        "a server is stopped for what others may hold",
    ),
    Mutant(
        "odometer/limit-of-the-last",
        "odometer.py",
        "            first=self.first or held,",
        "            first=held,",
        "a slow leak never comes to its limit",
    ),
    Mutant(
        "odometer/start-goes-on",
        "executor.py",
        "        odometer.record(self.host.stack_dir, {step.model: None})\n",
        "",
        "a restarted server is taken for the one that leaked",
        ("freed",),
    ),
    Mutant(
        "odometer/each-leaks-alone",
        "odometer.py",
        "left.append(cycles_left(min(free) + TOLERANCE_GB - max(need), together))",
        "left.append(cycles_left(min(free) + TOLERANCE_GB - max(need), gb))",
        "two that leak are told twice the switches that go well",
    ),
    Mutant(
        "odometer/own-need-only",
        "odometer.py",
        "there = [one.id for one in inventory.enabled if name in one.gpus]",
        "there = [model.id]",
        "a model that needs more is not reckoned with",
    ),
    # ---- weights that are read ahead ----
    Mutant(
        "warm/not-given-up",
        "transition.py",
        "                executor.end_warming()\n",
        "                pass\n",
        "weights are read on when the switch has failed",
        ("switch_warm",),
    ),
    Mutant(
        "warm/without-a-limit",
        "page_cache.py",
        "+ length > self.limit:",
        "+ length < 0:",
        "weights that the RAM does not hold push out what was read of them, and whatever else is cached",
        ("page_cache",),
    ),
    Mutant(
        "warm/ram-of-the-sleep",
        "transition.py",
        " - sleep_ram_gb(plan, self.host.models)",
        "",
        "a sleep at level 1 finds the RAM full of the other model's weights",
        ("switch_warm",),
    ),
    Mutant(
        "warm/shared-memory",
        "transition.py",
        "if not step or memory.remembered_shared(self.host.stack_dir):",
        "if not step:",
        "where CPU and GPU share their memory the page cache takes it from the model",
        ("switch_warm",),
    ),
    Mutant(
        "warm/level-1",
        "plan.py",
        "step.level not in (0, 1)) else None",
        "step.level not in (0,)) else None",
        "weights are read that are in the RAM anyway",
        ("plan",),
    ),
    Mutant(
        "warm/own-readahead",
        "page_cache.py",
        "for offset, length, there in told:",
        "for offset, length, there in ((at, n, self._look(descriptor, at, n)) for at, n in _windows(size)):",
        "what the kernel reads ahead by itself is told as found in the page cache",
        ("page_cache",),
    ),
    Mutant(
        "warm/everybody-may-ask-mincore",
        "page_cache.py",
        "if not told and _may_write(descriptor):",
        "if not told:",
        "a user who may only read a file takes all of it for cached, and reads nothing",
        ("page_cache",),
    ),
    Mutant(
        "warming/each-has-all-the-ram",
        "warming.py",
        "        left -= warmed.cached + warmed.read\n",
        "",
        "of several models the last ones push the first ones out of the page cache",
    ),
    Mutant(
        "warming/check-reads",
        "warming.py",
        "if check else Warmer(place, left)",
        "if False else Warmer(place, left)",
        "a check reads gigabytes",
    ),
    Mutant(
        "warming/shared-memory",
        "warming.py",
        "    if memory.remembered_shared(stack_dir):\n",
        "    if False:\n",
        "where CPU and GPU share their memory the page cache takes it from the models",
    ),
    Mutant(
        "warming/one-after-the-other",
        "warming.py",
        "    found = [(model.id, *_look(stack_dir, model)) for model in models.values()]\n",
        "    found = ((model.id, *_look(stack_dir, model)) for model in models.values())\n",
        "models are read though another one of the task has no weights",
    ),
)


class Broken(Exception):
    """The list does not fit the source, or the tests fail without a mutant."""


class Copy:
    """A copy of the checkout, as git would commit it, in which the engine is broken."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.root.mkdir()
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, check=True,
        )  # fmt: skip
        for name in listed.stdout.decode().split("\0"):
            source, target = ROOT / name, self.root / name
            if name and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode & 0o777)
        link = self.root / ".build" / "ansible_collections" / "homegpt" / "vllm"
        link.parent.mkdir(parents=True)
        link.symlink_to(self.root)
        # What Python has compiled is told by the second and the size of its source.
        self._written = int(time.time()) - 100_000

    def source(self, file: str) -> str:
        return (self.root / ENGINE / file).read_text(encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        path = self.root / ENGINE / file
        path.write_text(text, encoding="utf-8")
        self._written += 2
        os.utime(path, (self._written, self._written))

    @contextlib.contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        """The engine with this mutant."""
        before = self.source(mutant.file)
        self.write(mutant.file, mutated(mutant, before))
        try:
            yield
        finally:
            self.write(mutant.file, before)

    def run(self, command: list[str], seconds: float) -> tuple[int | None, str]:
        """The status, None for one that had to be killed, and what was printed."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("QUICK", "CI", "TEST_COUNTS"))}
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            return status, output.read()


def mutated(mutant: Mutant, source: str) -> str:
    """The source with the replacement. Raises Broken where it does not fit exactly once."""
    count = source.count(mutant.old)
    if count != 1:
        raise Broken(f"{mutant.name}: {mutant.file} has {count} times what it replaces: {mutant.old!r}")
    return source.replace(mutant.old, mutant.new)


def files_of(mutant: Mutant) -> list[str]:
    """The engine's unit tests, those of the mutant's room first."""
    rest = [path.name for path in sorted((ROOT / UNIT).glob("test_*.py"))]
    # The longest by far, and concerned with nothing else, come last.
    rest.sort(key=lambda name: name in ("test_inventory.py", "test_capacity.py"))
    first = [f"test_{name}.py" for name in (*mutant.tests, mutant.file.removesuffix(".py"))]
    ordered = [name for name in dict.fromkeys(first) if name in rest]
    return [f"{UNIT}/{name}" for name in (*ordered, *(name for name in rest if name not in ordered))]


def failing(files: list[str], copy: Copy) -> str:
    """The first unit test that fails, "" where all pass."""
    # Most of them wait for servers most of the time.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-n", str(SIDE_BY_SIDE)]
    command += [f"--timeout={ONE_TEST_SECONDS}", *files]
    status, printed = copy.run(command, TESTS_SECONDS)
    if status == NOTHING_FAILED:
        return ""
    if status is None:
        return "a test that hangs"
    # Its name may have blanks; what it says is told after a dash.
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)
    if failed is None:
        raise Broken(f"pytest exits {status}:\n{printed}")
    return failed.group(1).removeprefix(UNIT + "/")


def killer(mutant: Mutant, copy: Copy) -> str:
    """Which test or cell notices, "" for none."""
    by = failing(files_of(mutant), copy)
    if by:
        return by
    for cell in mutant.cells:
        command = [sys.executable, "-m", "tests.faults.matrix", "--only", cell]
        status, printed = copy.run(command, CELLS_SECONDS)
        if status != NOTHING_FAILED:
            found = re.search(r"VIOLATION: (.{1,100})", printed)
            return f"cell {cell}: {found.group(1) if found else 'it did not end well'}"
    return ""


def _interrupt(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run the mutants and return the exit status: 1 where one survived that has no reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    part = {"action": "append", "default": [], "metavar": "NAME"}
    parser.add_argument("--only", help="those whose name begins so; may be given more than once", **part)  # type: ignore[arg-type]
    parser.add_argument("--list", action="store_true", help="name the mutants and run none")
    options = parser.parse_args(argv)
    selected = [mutant for mutant in MUTANTS if mutant.name.startswith(tuple(options.only or [""]))]
    # Whoever ends it wants no tests left that go on.
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    try:
        for mutant in MUTANTS:
            mutated(mutant, (ROOT / ENGINE / mutant.file).read_text(encoding="utf-8"))
        if options.list:
            print("\n".join(f"{mutant.name:36} {mutant.breaks}" for mutant in selected))
            return 0
        survivors = []
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            copy = Copy(Path(folder))
            for mutant in selected:
                began = time.monotonic()
                with copy.broken(mutant):
                    by = killer(mutant, copy)
                # What fails without it too has noticed nothing.
                if "::" in by and failing([f"{UNIT}/{by}"], copy):
                    raise Broken(f"{mutant.name}: {by} fails without the mutant too")
                verdict = f"killed    {by}" if by else f"SURVIVED  {mutant.reason or mutant.breaks}"
                print(f"{mutant.name:36} {time.monotonic() - began:5.0f} s  {verdict}", flush=True)
                survivors += [] if by else [mutant]
    except Broken as error:
        print(error, file=sys.stderr)
        return 2
    killed = len(selected) - len(survivors)
    print(f"{time.monotonic() - started:.0f} s in all")
    print(f"{len(selected)} mutants, {killed} killed, {len(survivors)} survived", flush=True)
    return 1 if any(not mutant.reason for mutant in survivors) else 0


if __name__ == "__main__":
    sys.exit(main())
