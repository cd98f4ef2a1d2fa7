# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""One family of exceptions. Whoever calls the engine translates them (C(fail_json), an HTTP status, an exit code)."""

from __future__ import annotations

import typing

T = typing.TypeVar("T", bound="SwitchingError")


class SwitchingError(Exception):
    """Base of everything the engine raises on purpose; its text is written for the person who runs it.

    C(remedy) says what to do about it where the text does not; C({log}) in it stands for how to see the server's log.
    C(log) are the last lines of a server's log, where they may tell the cause.
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
    """The model inventory has mistakes; C(mistakes) lists all of them, each with its path and what would be right."""

    def __init__(self, mistakes: typing.Iterable[str]) -> None:
        self.mistakes = list(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        listed = "\n".join("- " + mistake for mistake in self.mistakes)
        super().__init__(f"the model inventory has {count}:\n{listed}")


class UnknownModel(SwitchingError):
    """The named model is not declared, or is declared C(disabled)."""


class NotProvisioned(SwitchingError):
    """The host has no stack to start a model from. Nothing has been touched."""


class Blocked(SwitchingError):
    """No safe plan exists for what was observed. Nothing has been touched."""


class ServerError(SwitchingError):
    """A server did not do what was asked of it."""

    remedy = "check its log ({log}) for the cause, then switch again"


class Unreachable(ServerError):
    """Nothing accepts connections on the server's port."""


class Unresponsive(ServerError):
    """The server took the connection but did not answer in time, or broke off."""


class BadAnswer(ServerError):
    """The answer is not one that vLLM gives: something else listens there, or something stands in between."""

    remedy = "find out what listens on its port and stop it, then switch again"


class Refused(ServerError):
    """The server answered with an HTTP error status, kept in C(status)."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class NoSuchAnswer(ServerError):
    """A healthy server knows none of the calls by which it could be proved ready. To start it anew would not help."""

    remedy = ""  # the text says it


class DevModeOff(ServerError):
    """The server runs without its sleep endpoints."""

    remedy = ""  # the text says it


class DrainTimeout(ServerError):
    """Requests still ran at the deadline and may not be cut. The server has them still."""

    remedy = "switch when it is less busy, raise drain_timeout_seconds, or set drain_timeout_action to abort"


class CannotCut(ServerError):
    """Requests still ran at the deadline and may be cut, but only by the end of the server."""


class WrongAnswer(ServerError):
    """The canary: a server that was woken answers otherwise than when it was known good."""

    remedy = (
        "check that the model's files have not changed since it was loaded; if the new answer is correct, record it "
        "(record_canary)"
    )


class NoMemory(ServerError):
    """Somebody else holds the GPU memory that a server needs. Nothing was asked of the server."""

    remedy = "end the process that holds the GPU memory, or stop the model that it serves, then switch again"


class Divided(NoMemory):
    """A GPU that a server needs as a whole is divided into MIG instances. Nothing was asked of the server."""

    remedy = "correct its gpus, or disable MIG on that GPU (nvidia-smi -mig 0), then switch again"


class LifecycleError(SwitchingError):
    """A server could not be started or stopped."""

    remedy = "check its log ({log}) for the cause, then switch again"


class ServerDied(LifecycleError):
    """The server's process ended while somebody waited for it."""


class LockTimeout(SwitchingError):
    """Another switch holds the host's lock for longer than C(lock_timeout_seconds)."""


class LockLost(SwitchingError):
    """The lock of a switch that goes on was removed, so that another one may have begun."""

    remedy = "check which model is active, then switch again; do not remove files from a stack's run directory"


class SwitchFailed(SwitchingError):
    """A plan could not be carried out. C(result) tells what was done and what the host is left with."""

    def __init__(self, message: str, result: typing.Any) -> None:
        self.result = result
        super().__init__(message)


class ChangedSince(SwitchFailed):
    """What is to be undone is not as it was left. Nothing has been touched. C(result) tells what there is."""
