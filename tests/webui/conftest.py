# SPDX-License-Identifier: MIT
"""The browser. Open WebUI takes gigabytes the first time, so it is asked for: OPEN_WEBUI=1 pytest tests/webui."""

from __future__ import annotations

import os

import pytest

from tests.manager.browser import find_chromium


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    if os.environ.get("OPEN_WEBUI") != "1":
        pytest.skip("OPEN_WEBUI=1 runs this with the real Open WebUI")
    found = find_chromium()
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    return found
