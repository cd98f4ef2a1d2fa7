# SPDX-License-Identifier: MIT
"""The service: `python3 -m model_manager CONFIG`.

It ends on SIGTERM: nothing new is taken, the switch that runs ends or is taken back within a bound, and who waits for
an answer gets one. Exit status: 0 ended as asked, 1 failed, 2 set up wrongly.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType

import uvicorn
from ansible_collections.homegpt.vllm.plugins.module_utils.switching import state_files
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.__main__ import read_inventory
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError, SwitchingError

from . import gateway_link
from .app import create_app
from .config import Config, ConfigError, read
from .connections import KEEP_ALIVE_SECONDS, Connection
from .events import Bus
from .history import History
from .manager import Manager
from .metrics import Metrics
from .status_file import StatusFile
from .tracing import Tracing
from .usage import Usage

_LOG = logging.getLogger("model_manager")
# By malloc.h. glibc gives threads heaps of their own, and what one of them needed once stays with it.
_M_ARENA_MAX = -8
# When the collector looks through new objects, those that have outlived that, and all. By Python's own numbers it does
# the last once in 250 switches, and the memory grows to what these leave.
_COLLECT = (700, 3, 1)
# Beyond the switch itself: for the last answers to be read.
_ANSWER_SECONDS = 5


class Service(uvicorn.Server):
    """The HTTP server, which ends the manager first: those who wait for a switch are answered before it closes."""

    def __init__(self, config: uvicorn.Config, manager: Manager) -> None:
        super().__init__(config)
        self._manager = manager
        self._ending: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to end."""
        super().handle_exit(sig, frame)
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, name="ending", daemon=True)
            self._ending.start()

    def _end(self) -> None:
        self._manager.stop()
        self._manager.bus.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m model_manager", description="Serve the models of this host.")
    parser.add_argument("config", help="the JSON file of the settings")
    parser.add_argument("--check", action="store_true", help="only check the settings")
    options = parser.parse_args(argv)
    # The journal has the time of each line.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    _share_heap()
    try:
        config = read(options.config)
        if options.check:
            return 0
        inventory = read_inventory(config.stack_dir)
        _check_what_was_set(config)
        # First of all: one that nobody can reach is started again and again, and shall switch nothing meanwhile.
        door = _listen(config)
        links = gateway_link.listen(config) if config.gateway_listen else None
    except (ConfigError, InventoryError) as error:
        _LOG.error("%s", error)
        return 2
    except (SwitchingError, OSError) as error:
        _LOG.error("%s", error)
        return 1
    history = History(os.path.join(config.stack_dir, "run", "manager.sqlite"), keep_switches=config.history_switches)
    manager = Manager(config, inventory, history=history, bus=Bus())
    usage = Usage(config.stack_dir, history)
    try:
        with contextlib.ExitStack() as ending:
            ending.enter_context(door)
            if links:
                ending.enter_context(links)
            if config.traces_endpoint:
                tracing = Tracing(config.traces_endpoint, platform.node())
                manager.bus.listen(tracing.feed)
                ending.callback(tracing.stop)
            return _serve(config, manager, usage, door, links)
    except ConfigError as error:
        _LOG.error("%s", error)
        return 2
    finally:
        manager.stop()
        manager.bus.close()
        usage.stop()
        history.close()


def _check_what_was_set(config: Config) -> None:
    """Raise OSError where it can't be read what people have set: started without it, the service would drop a pin."""
    try:
        state_files.read_or_raise(config.stack_dir, state_files.MANAGER)
    except OSError as error:
        path = state_files.path(config.stack_dir, state_files.MANAGER)
        raise OSError(
            f"{path} can't be read ({error.strerror}), and the mode, the pin and the evictions are in it: repair that, "
            "or remove the file to start without them"
        ) from None


def _share_heap() -> None:
    """Have all threads share a heap. Not by MALLOC_ARENA_MAX, which servers that this service starts would inherit."""
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _listen(config: Config) -> socket.socket:
    """A socket with the address of the service. Raises OSError, whose text says what to do."""
    family = socket.AF_INET6 if ":" in config.listen else socket.AF_INET
    try:
        return socket.create_server((config.listen, config.port), family=family)
    except OSError as error:
        why = os.strerror(error.errno or 0)  # Python adds the address to its own text
        raise OSError(
            f"the service can't listen on {config.listen}, port {config.port} ({why}): stop what else does, or correct "
            "listen and port"
        ) from None


def _serve(config: Config, manager: Manager, usage: Usage, door: socket.socket, links: socket.socket | None) -> int:
    metrics, status_file = Metrics(manager.view, usage.totals), StatusFile(manager.view, config)
    for listener in (usage.feed, metrics.feed, status_file.feed):
        manager.bus.listen(listener)
    manager.gateway.measure(metrics.gateway)
    manager.on_observed(usage.observed)
    app = create_app(manager, config, [metrics.router(), usage.router()], links)
    manager.start()
    service = Service(
        uvicorn.Config(
            app,
            log_config=None,  # as set up above
            access_log=False,
            server_header=False,
            http=Connection,
            limit_concurrency=config.max_connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws_max_size=config.max_body_bytes,
            # Twice: a switch may go on for so long, and be taken back for as long.
            timeout_graceful_shutdown=int(2 * config.stop_timeout_seconds) + _ANSWER_SECONDS,
        ),
        manager,
    )
    # uvicorn raises the signal once more when it has ended; it was handled.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_given: None)
    status_file.start()
    # What is there now stays. Where all of it counts, the collector lets waste grow to a share of that first. The rest
    # is little: to look through all of it is quick.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    try:
        service.run([door])
    finally:
        status_file.stop()
    return 0 if service.started else 1


if __name__ == "__main__":
    raise SystemExit(main())
