# SPDX-License-Identifier: MIT
"""Write the generated blocks of the pages anew:

.venv/bin/python -m tests.consistency.write
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write every page."""
    sys.path.insert(0, str(ROOT / ".build"))  # pytest knows that by itself
    from tests.consistency import (
        blocks,
        gateway_doc,
        homegpt_doc,
        inventory_doc,
        manager_doc,
        sizing_doc,
        speed_doc,
        support_doc,
    )

    files = homegpt_doc.render(str(Path(sys.executable).with_name("ansible-playbook")))
    for page, texts in (
        (gateway_doc.PAGE, gateway_doc.rendered()),
        (homegpt_doc.PAGE, homegpt_doc.rendered(files)),
        (inventory_doc.PAGE, inventory_doc.rendered()),
        (manager_doc.PAGE, manager_doc.rendered()),
        (sizing_doc.PAGE, sizing_doc.rendered()),
        (support_doc.PAGE, {**support_doc.rendered(), **speed_doc.rendered()}),
    ):
        page.write_text(blocks.written(page.read_text(encoding="utf-8"), texts), encoding="utf-8")


if __name__ == "__main__":
    main()
