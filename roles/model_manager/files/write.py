# SPDX-License-Identifier: MIT
"""Makes a folder contain the files that standard input names with their texts, as JSON, and nothing else.

A name may be a path, `page/index.html`. `python3 write.py FOLDER look|write` prints the names of what differs, a line
each; `look` changes nothing.
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


def is_folder(path):
    """Whether it is a folder itself, not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def find_others(folder, names, inside=""):
    """What is in the folder and is neither one of the files nor a folder that has some of them."""
    folders = {os.path.dirname(name) for name in names}
    found = []
    for name in sorted(os.listdir(os.path.join(folder, inside))):
        path = os.path.join(inside, name)
        if path in folders and is_folder(os.path.join(folder, path)):
            found += find_others(folder, names, path)
        elif path not in names:
            found.append(path)
    return found


def remove(path):
    """Remove a file, a link, or a folder with all that is in it."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def write(folder, name, text):
    """Write a file that others may read, so that it is never there in part."""
    path = os.path.join(folder, name)
    if is_folder(path):
        remove(path)
    if not os.path.isdir(os.path.dirname(path)):
        os.mkdir(os.path.dirname(path))
    with open(path + ".new", "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(path + ".new", 0o644)
    os.replace(path + ".new", path)


def main():
    """Compare, write and remove."""
    folder, work = sys.argv[1:]
    os.umask(0o022)
    texts = json.load(sys.stdin)
    gone = find_others(folder, texts) if os.path.isdir(folder) else []
    if work == "write":
        for name in gone:
            remove(os.path.join(folder, name))
    # Only now: a file may have been found behind a link that is gone.
    different = [name for name in sorted(texts) if read(os.path.join(folder, name)) != texts[name]]
    if work == "write":
        for name in different:
            write(folder, name, texts[name])
    for name in different + gone:
        print(name)


main()
