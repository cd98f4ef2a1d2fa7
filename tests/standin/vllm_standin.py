# SPDX-License-Identifier: MIT
"""A stand-in for `vllm serve`: same command line, same HTTP answers, no model.

    python tests/standin/vllm_standin.py serve MODEL [any flag of vllm serve]

It behaves as a real server as far as a client or an operator can see: it loads, sleeps and
wakes, takes VRAM of a GPU that it shares with other stand-ins, hangs, dies of OOM, and says
the wrong thing when its weights were not reloaded. tests/contract runs the same cases against
it and against real vLLM.

Its own settings come from the environment (see settings.py); faults can be ordered while it
runs (see faults.py).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # From the first moment: without a handler the first process of a container does not heed SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Started by path, so this folder and not its parent is on the path.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(importlib.import_module("standin.server").main(sys.argv[1:]))
