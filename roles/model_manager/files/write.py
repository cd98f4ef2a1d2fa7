# SPDX-License-Identifier: MIT
"""Makes a folder contain the files that standard input names with their texts, as JSON, and nothing else.

`python3 write.py FOLDER look|write` prints the names of what differs, a line each; `look` changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys


def read(path):
    """The text of a file; None where there is none, or where others could write to it."""
    if not os.path.isfile(path) or os.path.islink(path) or os.stat(path).st_mode & 0o777 != 0o644:
        return None
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def write(folder, name, text):
    """Write a file that others may read, so that it is never there in part."""
    new = os.path.join(folder, name + ".new")
    with open(new, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(new, 0o644)
    os.replace(new, os.path.join(folder, name))


def main():
    """Compare, write and remove."""
    folder, work = sys.argv[1:]
    texts = json.load(sys.stdin)
    present = os.listdir(folder) if os.path.isdir(folder) else []
    different = [name for name in sorted(texts) if read(os.path.join(folder, name)) != texts[name]]
    gone = sorted(set(present) - set(texts))
    if work == "write":
        for name in gone + [name for name in different if os.path.isdir(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        for name in different:
            write(folder, name, texts[name])
    for name in different + gone:
        print(name)


main()
