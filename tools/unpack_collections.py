# SPDX-License-Identifier: MIT
"""Unpack the collections that this one depends on into .build, for development and tests.

    python tools/unpack_collections.py FOLDER

PyPI's package ``ansible`` carries them, so one package index serves for everything: no Galaxy server is
asked. What is there already, of the version pinned here, stays.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Brings awx.awx 24.6.1 and community.docker 4.8.5.
PACKAGE = "ansible==12.3.0"
COLLECTIONS = ("awx.awx", "community.docker", "community.library_inventory_filtering_v1")


def download(folder: Path) -> Path:
    """Fetch the wheel: 54 MB of data, so the Python at hand need not be one that it installs on."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
    subprocess.run([*pip, "download", *options, PACKAGE], check=True)
    return next(folder.glob("ansible-*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Put the collections below a folder, out of the wheel's own ansible_collections."""
    prefixes = tuple("ansible_collections/%s/" % name.replace(".", "/") for name in COLLECTIONS)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(prefixes)])


def main() -> None:
    """Do nothing, or replace what is there as a whole."""
    target = Path(sys.argv[1])
    stamp = target / ".from"
    made_of = "%s: %s\n" % (PACKAGE, " ".join(COLLECTIONS))
    folders = [target / name.replace(".", "/") for name in COLLECTIONS]
    if stamp.exists() and stamp.read_text() == made_of and all((each / "MANIFEST.json").exists() for each in folders):
        return
    print("Unpacking", *COLLECTIONS)
    stamp.unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        unpacked = Path(work) / "ansible_collections"
        unpack(download(Path(work)), Path(work))
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            (unpacked / folder.relative_to(target)).rename(folder)
    stamp.write_text(made_of)


if __name__ == "__main__":
    main()
