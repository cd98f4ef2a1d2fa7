# SPDX-License-Identifier: MIT
"""Give ansible-test the pip bootstrap script that it would otherwise download.

ansible-test fetches ``get-pip`` from a host of its own, which a machine that reaches only a package
index does not reach. The same pip comes from that index as a wheel, and a wheel can install itself:
this writes a script of the expected name that does so, unless there is one already.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from ansible_test._internal import python_requirements

BOOTSTRAP = """\
import os
import runpy
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "{wheel}"))
options = [each for each in sys.argv[1:] if each not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", "--no-index", "--find-links", here] + options
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    """Write the script for the pip version that this ansible-test asks for."""
    source = inspect.getsource(python_requirements)
    wanted = re.search(r"default_packages = dict\(\s*pip='([^']+)'", source)
    if wanted is None:
        sys.exit("This ansible-test does not say which pip it wants; look at its python_requirements.py")
    version = wanted.group(1)
    cache = Path.home() / ".ansible/test/cache"
    script = cache / f"get_pip_{version.replace('.', '_')}.py"
    if script.exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(cache), f"pip=={version}"], check=True)
    script.write_text(BOOTSTRAP.format(wheel=next(cache.glob(f"pip-{version}-*.whl")).name), encoding="utf-8")


if __name__ == "__main__":
    main()
