# SPDX-License-Identifier: MIT
"""The stand-in as a process: it loads, listens, and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time

from aiohttp import web

from .api import BACKLOG, Api
from .engine import Engine, say
from .faults import Faults, die
from .gpu import GpuHost, OutOfMemory
from .settings import Settings, read


def load(settings: Settings, host: GpuHost, faults: Faults) -> int:
    """Load the model: take the memory and the time. Returns the exit status, 0 when it is loaded."""
    say("INFO", "core.py:133", f"Initializing a V1 LLM engine (v{settings.version}) with config: {settings.model!r}")
    host.event("loading")
    try:
        host.hold(settings.vram_gb)
    except OutOfMemory as exc:
        share = settings.vram_gb / settings.gpu_total_gb
        cause = (
            f"ValueError: Free memory on device cuda:{exc.index} ({exc.free:.2f}/{settings.gpu_total_gb:.2f} GiB) on "
            f"startup is less than desired GPU memory utilization ({share:.2g}, {settings.vram_gb:.2f} GiB). Decrease "
            "GPU memory utilization or reduce GPU memory used by other processes."
        )
        return failed_to_load(host, cause)
    say("INFO", "gpu_model_runner.py:2602", f"Starting to load model {settings.model}...")
    fault = faults.take("load")
    time.sleep(settings.load_seconds)
    if fault is not None and fault.fault == "hang":
        time.sleep(3600 if fault.seconds is None else fault.seconds)
    elif fault is not None and fault.fault == "kill":
        die()
    elif fault is not None and fault.fault == "oom":
        return failed_to_load(host, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
    elif fault is not None:
        return failed_to_load(host, f"ValueError: No supported config format found in {settings.model}")
    say("INFO", "default_loader.py:501", f"Loading weights took {settings.load_seconds:.2f} seconds")
    return 0


def failed_to_load(host: GpuHost, cause: str) -> int:
    """Print the last lines of a server that could not start."""
    say("ERROR", "core.py:1036", "EngineCore failed to start.")
    say("ERROR", "core.py:1036", cause)
    host.end(cause)
    print("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}", flush=True)
    return 1


async def serve(settings: Settings, engine: Engine, faults: Faults, listener: socket.socket) -> None:
    """Answer until the process ends."""
    api = Api(settings, engine, faults)
    api.loading = settings.listens_while_loading
    runner = web.AppRunner(api.app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    if not api.loading:
        engine.host.event("awake", weights_right=True)
    say("INFO", "entry.py:140", f"Starting vLLM server on http://{settings.host}:{settings.port}", "APIServer")
    print(f"INFO:     Started server process [{os.getpid()}]", file=sys.stderr)
    print("INFO:     Waiting for application startup.", file=sys.stderr)
    secure = None
    if settings.ssl_certfile:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    site = web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=secure)
    await site.start()
    api.stop_listening, api.listener = site.stop, listener
    print("INFO:     Application startup complete.", file=sys.stderr, flush=True)
    if api.loading:
        status = await asyncio.to_thread(load, settings, engine.host, faults)
        if status != 0:
            os._exit(status)
        api.loading = False
        engine.host.event("awake", weights_right=True)
    await asyncio.Event().wait()


def main(argv: list[str]) -> int:
    """Run one server."""
    settings = read(argv)
    host = GpuHost(settings.gpu_dir, settings.gpus, settings.gpu_total_gb, settings.names[0])

    faults = Faults(settings.faults, settings.faults_file)
    engine = Engine(settings, host)

    def end_now() -> None:
        # Inside the ledger its lock cannot be had again; the next process that looks finds this one dead.
        if not host.locked:
            host.end("terminated")
        print("INFO:     Shutting down", file=sys.stderr, flush=True)
        os._exit(0)

    def end(_signal: int, _frame: object) -> None:
        if faults.take("term"):
            return
        if engine.generations and settings.family.deaf_to_term_while_busy:
            engine.when_idle = end_now
        else:
            end_now()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Bound before loading and listening after it, as vLLM does: a taken port is noticed at once,
    # and until the model is loaded connections are refused.
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        print(f"OSError: [Errno {exc.errno}] {exc.strerror}", flush=True)
        return 1
    status = 0 if settings.listens_while_loading else load(settings, host, faults)
    if status == 0:
        asyncio.run(serve(settings, engine, faults, listener))
    return status
