# SPDX-License-Identifier: MIT
"""Draw the README's timeline: a switch on two real vLLM servers, one of which is answering a request.

.venv/bin/python -m tests.real.timeline
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs/timeline.svg"
TOKENS = 1900  # an answer of seconds


def main() -> None:
    """Switch and draw."""
    sys.path.insert(0, str(ROOT / ".build"))  # pytest knows that by itself
    from ansible_collections.homegpt.vllm.plugins.plugin_utils.timeline import svg

    from tests.playbooklib import Host, complete
    from tests.real.stack import A, B, Pair
    from tests.serverlib import real_venv

    with tempfile.TemporaryDirectory() as folder:
        try:
            pair = Pair(Path(folder), real_venv(), str(Path(sys.executable).with_name("ansible-playbook")))
            pair.settle()  # and so each has woken once
            asked = threading.Thread(target=complete, args=(pair.host.port(A), A, TOKENS))
            asked.start()
            pair.stack.wait_until_running(A)
            result = pair.stack.switch(B).result
            asked.join()
        finally:
            Host(Path(folder), []).kill()
    assert result["requests"] == {"drained": 1, "parked": 0, "cut": 0}, result
    row = {"host": "one host", "from": A, "to": B, "seconds": result["elapsed_seconds"], "result": "switched"}
    FILE.write_text(svg([{**row, "steps": result["steps"]}]), encoding="utf-8")


if __name__ == "__main__":
    main()
