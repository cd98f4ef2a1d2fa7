# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The exceptions of the engine. Callers translate them to C(fail_json), an HTTP status or an exit code."""

from __future__ import annotations

import typing

T = typing.TypeVar("T", bound="SwitchingError")


class SwitchingError(Exception):
    """Base class of the exceptions of the engine; its text is the message for the user.

    C(remedy) is the remedy, if the text does not contain it; C({log}) in it is replaced by the command that shows the
    server's log. C(log) are the last lines of a server's log, if they may contain the cause.
    """

    remedy = ""
    log: typing.Sequence[str] = ()

    def with_log(self: T, log: typing.Sequence[str]) -> T:
        """The error itself, with these lines."""
        self.log = log
        return self

    def masked(self: T, mask: typing.Callable[[str], str]) -> T:
        """The error itself, with every text of it changed."""
        self.args = tuple(mask(part) if isinstance(part, str) else part for part in self.args)
        self.log = [mask(line) for line in self.log]
        return self


class InventoryError(SwitchingError):
    """The model inventory has mistakes; C(mistakes) lists all of them, each with its path and the remedy."""

    def __init__(self, mistakes: typing.Iterable[str]) -> None:
        self.mistakes = list(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        listed = "\n".join("- " + mistake for mistake in self.mistakes)
        super().__init__(f"the model inventory has {count}:\n{listed}")


class UnknownModel(SwitchingError):
    """The named model is not declared, or is declared C(disabled)."""


class NotProvisioned(SwitchingError):
    """The host has no stack from which a model can be started. Nothing was changed."""


class Blocked(SwitchingError):
    """No safe plan exists for the observed state. Nothing was changed."""


class ServerError(SwitchingError):
    """A server did not do what was requested."""

    remedy = "check its log ({log}) for the cause, then switch again"


class Unreachable(ServerError):
    """Nothing accepts connections on the server's port."""


class Unresponsive(ServerError):
    """The server accepted the connection but did not answer in time, or closed it."""


class BadAnswer(ServerError):
    """The answer does not come from vLLM: something else listens on the port, or a proxy is in between."""

    remedy = "find out what listens on its port and stop it, then switch again"


class Refused(ServerError):
    """The server answered with an HTTP error status, kept in C(status)."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class NoSuchAnswer(ServerError):
    """A healthy server supports none of the calls that show that it is ready. A restart would not help."""

    remedy = ""  # the text says it


class DevModeOff(ServerError):
    """The server runs without its sleep endpoints."""

    remedy = ""  # the text says it


class FreedNothing(ServerError):
    """The server sleeps and has not given its GPU memory back."""

    remedy = "if this happens again, set its sleep_level to stop"


class InDoubt(ServerError):
    """The server says that it sleeps, and can't tell whether it is only paused."""


class DrainTimeout(ServerError):
    """Requests still ran at the deadline and must not be cut. The server still processes them."""

    remedy = "switch when it is less busy, raise drain_timeout_seconds, or set drain_timeout_action to abort"


class CannotCut(ServerError):
    """Requests still ran at the deadline and may be cut, but only by the end of the server."""


class WrongAnswer(ServerError):
    """The canary: the answer of a woken server differs from the recorded one."""

    remedy = (
        "check that the model's files have not changed since it was loaded; if the new answer is correct, record it "
        "(record_canary)"
    )


class IdleDrafts(ServerError):
    """After a wake hardly any of the drafted tokens are accepted. To load the weights once more would not help."""

    remedy = "set its sleep_level to auto or 1: vLLM does not reload the weights of a draft model after level 2"


class WrongAdapter(WrongAnswer):
    """The canary of a LoRA adapter: its answer differs from the recorded one, or its route is gone."""

    remedy = (
        "check that the adapter's files have not changed since it was loaded; if the new answer is correct, record it "
        "(record_canary); if every wake loses it, set the model's sleep_level to 1, or to stop"
    )


class NoMemory(ServerError):
    """Another process holds the GPU memory that a server needs. The server received no request."""

    remedy = "end the process that holds the GPU memory, or stop the model that it serves, then switch again"


class Divided(NoMemory):
    """A GPU that a server needs completely is divided into MIG instances. The server received no request."""

    remedy = "correct its gpus, or disable MIG on that GPU (nvidia-smi -mig 0), then switch again"


class LifecycleError(SwitchingError):
    """A server could not be started or stopped."""

    remedy = "check its log ({log}) for the cause, then switch again"


class ServerDied(LifecycleError):
    """The server's process ended while the switch waited for it."""


class LockTimeout(SwitchingError):
    """Another switch held the host's lock for longer than C(lock_timeout_seconds)."""


class LockLost(SwitchingError):
    """The lock of a running switch was removed, so another switch may have started."""

    remedy = "check which model is active, then switch again; do not remove files from a stack's run directory"


class SwitchFailed(SwitchingError):
    """A plan failed. C(result) contains the executed steps and the state of the host."""

    def __init__(self, message: str, result: typing.Any) -> None:
        self.result = result
        super().__init__(message)


class ChangedSince(SwitchFailed):
    """The models of a change are not in the state that it left. Nothing was changed. C(result) has their states."""
