# SPDX-License-Identifier: MIT
"""docs/gateway.md: the gateway's settings, as the code that checks them has them; what the bench measures of it."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.homegpt.vllm.plugins.plugin_utils.gateway import SETTINGS

from tests.consistency import blocks, speed_doc

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/gateway.md"


def rendered() -> dict[str, str]:
    """Return the blocks of the page."""
    rows = [[f"`{name}`", f"`{setting.default}`", setting.meaning] for name, setting in SETTINGS.items()]
    return {"gateway-settings": blocks.table(["key", "default", "meaning"], rows), **speed_doc.door_rendered()}
