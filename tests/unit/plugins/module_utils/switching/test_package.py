# SPDX-License-Identifier: MIT
"""The package as Ansible sends it to a host: in a zip."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.serverlib import ROOT

FOLDER = ROOT / "plugins/module_utils/switching"
LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
compiled = []
sys.addaudithook(lambda event, about: event == "compile" and compiled.append(str(about[1])))
import switching.switch
try:
    import switching.nothing
except ImportError as error:
    absent = str(error)
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("switching.")}
print(json.dumps([compiled, ours, absent]))
"""


def test_a_module_in_a_zip_is_compiled_once(tmp_path: Path) -> None:
    packed = tmp_path / "sent.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in FOLDER.glob("*.py"):
            archive.write(path, f"switching/{path.name}")
    told = subprocess.run([sys.executable, "-c", LOOK, str(packed)], check=True, capture_output=True, text=True)
    compiled, ours, absent = json.loads(told.stdout)
    from_zip = [path for path in compiled if path.startswith(str(packed))]
    modules = [path for path in from_zip if not path.endswith("__init__.py")]
    assert len(modules) > 10
    assert sorted(modules) == sorted(set(modules)) == sorted(ours.values())
    assert "switching.nothing" in absent
