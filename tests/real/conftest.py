# SPDX-License-Identifier: MIT
"""Real vLLM, for what is worth proving against the real thing.

They take minutes and gigabytes the first time, so they are asked for: REAL_VLLM=1 pytest tests/real
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.serverlib import real_venv


@pytest.fixture(scope="session")
def venv() -> Path:
    """The virtual environment of real vLLM."""
    if os.environ.get("REAL_VLLM") != "1":
        pytest.skip("REAL_VLLM=1 runs this against real vLLM")
    return real_venv()
