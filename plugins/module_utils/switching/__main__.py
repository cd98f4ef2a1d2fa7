# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The host's own command line: C(python3 -m switching COMMAND), in the stack's folder.

The models are those of C(models.json) beside the package. Exit status: 0 done, 1 failed, 2 asked for wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import typing

from . import capacity, hardware, state_files
from .desired_state import recorded
from .errors import InventoryError, SwitchFailed, SwitchingError, UnknownModel
from .inventory import Inventory, parse
from .plan import ACTIVE, SLEEPING, STOPPED
from .redaction import Mask, secrets_of
from .result import Result, describe, say_step
from .switch import Switcher
from .tables import status_lines


def main(argv: typing.Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    options = _parser().parse_args(argv)
    try:
        inventory = read_inventory(options.stack_dir)
        if not options.run:  # nothing that asks servers
            return _lint(inventory, options.stack_dir)
        with Switcher(inventory, options.stack_dir, tell=lambda text: _say(text, sys.stderr)) as switcher:
            status: int = options.run(switcher, options)
            return status
    except (InventoryError, UnknownModel) as error:
        return _fail(str(error), 2)
    except SwitchingError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _parser() -> argparse.ArgumentParser:
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(
        prog="python3 -m switching", description="Show and switch the models of this host."
    )
    parser.add_argument("--stack-dir", default=here, help="the directory of models.json (default: %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="show the state of every model")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    switch = commands.add_parser("switch", help="make a model active, put it to sleep, or stop it")
    switch.add_argument("model", metavar="MODEL", help="its id or one of its aliases")
    switch.add_argument("--state", choices=(ACTIVE, SLEEPING, STOPPED), default=ACTIVE, help="default: %(default)s")
    switch.add_argument("--check", action="store_true", help="only show what would be done")
    switch.add_argument("--record-canary", action="store_true", help="record its canary answer as the correct one")
    switch.add_argument("--json", action="store_true", help="print JSON")
    switch.add_argument("--for-now", action="store_true", help="leave the state that a boot restores unchanged")
    switch.set_defaults(run=_switch)
    back = commands.add_parser("roll-back", help="make the model active that the last switch replaced")
    back.add_argument("--check", action="store_true", help="only show what would be done")
    back.add_argument("--json", action="store_true", help="print JSON")
    back.set_defaults(run=_roll_back)
    restore = commands.add_parser("restore", help="restore the desired state of the models, as a boot does")
    restore.set_defaults(run=_restore)
    warm = commands.add_parser("warm", help="read the weights of a model into the page cache, before a switch to it")
    warm.add_argument("model", metavar="MODEL", help="its id or one of its aliases")
    warm.add_argument("--check", action="store_true", help="only show how much of them is there, and would be read")
    warm.add_argument("--json", action="store_true", help="print JSON")
    warm.set_defaults(run=_warm)
    lint = commands.add_parser("lint", help="check whether this host has enough memory for its models")
    lint.set_defaults(run=None)
    return parser


def read_inventory(stack_dir: str) -> Inventory:
    """The models of a stack. Raises SwitchingError where they can't be read, InventoryError with all mistakes."""
    path = os.path.join(stack_dir, "models.json")
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
        models, switching = given["vllm_models"], given.get("vllm_switching")
    except PermissionError:
        raise SwitchingError(f"{path} can't be read: run as root (sudo)") from None
    except FileNotFoundError:
        raise SwitchingError(f"{path} does not exist: provision the host, or give --stack-dir") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SwitchingError(f"{path} is damaged ({type(error).__name__}): provision the host again") from None
    try:
        return parse(models, switching)
    except InventoryError as error:
        raise error.masked(Mask(secrets_of(models, switching))) from None


def _status(switcher: Switcher, options: argparse.Namespace) -> int:
    report = switcher.report()
    if options.json:
        _say(json.dumps({**report, "wanted": recorded(options.stack_dir)}))
    else:
        _say("\n".join(status_lines({platform.node(): report})))
    for warning in report["warnings"]:
        _say(f"warning: {warning}", sys.stderr)
    return 0


def _switch(switcher: Switcher, options: argparse.Namespace) -> int:
    def work() -> Result:
        return switcher.switch(options.model, options.state, options.check, options.for_now, options.record_canary)

    return _show(work, options, lambda _result: switcher.inventory.find(options.model).id)


def _roll_back(switcher: Switcher, options: argparse.Namespace) -> int:
    return _show(lambda: switcher.roll_back(options.check), options, lambda result: result.active_model or "")


def _show(work: typing.Callable[[], Result], options: argparse.Namespace, which: typing.Callable[[Result], str]) -> int:
    try:
        result = work()
    except SwitchFailed as error:
        _show_steps(error.result, options.json)
        raise
    _show_steps(result, options.json)
    if not options.json:
        name = which(result)
        would = "would be " if options.check and result.changed else ""
        _say(f"{name}: {would}{describe(result.models[name])}{'' if result.changed else ', unchanged'}")
    return 0


def _restore(switcher: Switcher, options: argparse.Namespace) -> int:
    del options
    failed = []
    for model, desired, outcome in switcher.restore():
        if isinstance(outcome, SwitchingError):
            failed.append(model.id)
            _say(f"{model.id}: FAILED, should be {desired}: {outcome}", sys.stderr)
        else:
            how = f"in {outcome.elapsed_seconds:.1f} s" if outcome.changed else "unchanged"
            _say(f"{model.id}: {describe(outcome.models[model.id])}, {how}")
    return _fail("not restored: " + ", ".join(failed), 1) if failed else 0


def _warm(switcher: Switcher, options: argparse.Namespace) -> int:
    from . import warming  # noqa: PLC0415 - no other command needs it

    done = warming.warm(
        switcher.inventory, options.stack_dir, [options.model], options.check, switcher.mem_available_gb
    )
    for one in done:
        _say(json.dumps({"model": one.model, **one.as_dict()}) if options.json else "\n".join(one.lines))
    return 0


def _lint(inventory: Inventory, stack_dir: str) -> int:
    ram, gpus = hardware.read_ram_total_gb(), hardware.read_gpus()
    problems = capacity.lint(inventory, ram, gpus)
    for line in problems:
        _say(f"problem: {line}")
    for line in capacity.advice(inventory, ram, gpus, state_files.models(stack_dir, state_files.COSTS)):
        _say(f"advice: {line}")
    return 1 if problems else 0


def _show_steps(result: Result, as_json: bool) -> None:
    if as_json:
        _say(json.dumps(result.as_dict()))
        return
    for step in result.steps:
        seconds = "" if step["seconds"] is None else f"  {step['seconds']:.2f} s"
        note = (f"  ({step['note']})" if "note" in step else "") + ("  FAILED" if "failed" in step else "")
        _say(f"{say_step(step)}{seconds}{note}")
    for warning in result.warnings:
        _say(f"warning: {warning}", sys.stderr)


def _fail(message: str, status: int) -> int:
    _say(message, sys.stderr)
    return status


def _say(text: str, stream: typing.TextIO | None = None) -> None:
    # At once: what a restore prints goes to the journal, and is read while it goes on.
    stream = stream or sys.stdout
    stream.write(text + "\n")
    stream.flush()


if __name__ == "__main__":
    raise SystemExit(main())
