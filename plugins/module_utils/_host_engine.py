# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The copy of the engine that vllm_engine has left on a host: whether it is the controller's, and its import.

What is imported is the very text that was hashed: no file is read twice, and no cached bytecode at all. Private to this
collection.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import os
import stat
import sys
import types
import typing

DEFAULT_STACK_DIR = "/opt/homegpt"
FOLDER = "switching"  # in the stack's folder, and in this package


class Untrusted(Exception):
    """Somebody else could have written it."""


def texts(folder: str) -> dict[str, bytes]:
    """The text of every Python file of the folder by its name. Raises OSError."""
    found = {}
    for name in _names(folder):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = file.read()
    return found


def trusted_texts(folder: str) -> dict[str, bytes]:
    """The same of a folder that only root and this user can have written. Raises Untrusted, or OSError."""
    folder = os.path.realpath(folder)
    _check(folder, os.lstat(folder), stat.S_ISDIR)
    above = folder
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        _check(above, os.lstat(above), stat.S_ISDIR, parent=True)
    found = {}
    for name in _names(folder):
        path = os.path.join(folder, name)
        # No link is followed, and a pipe is not waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            _check(path, os.fstat(file.fileno()), stat.S_ISREG)
            found[name] = file.read()
    return found


def digest(found: typing.Mapping[str, bytes]) -> str:
    """One for all names and texts."""
    total = hashlib.sha256()
    for name in sorted(found):
        total.update(f"{name}\0{len(found[name])}\0".encode())
        total.update(found[name])
    return total.hexdigest()


def use(folder: str, wanted: str, package: str) -> str:
    """Have the package imported from the host's folder if its digest is the wanted one; else return why it is not."""
    try:
        found = trusted_texts(folder)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    except Untrusted as error:
        return str(error)
    if digest(found) != wanted:
        return f"{folder} is not the controller's engine"
    sys.meta_path.insert(0, _Importer(package, folder, found))
    return ""


def _names(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".py")]


def _check(path: str, found: os.stat_result, kind: typing.Callable[[int], bool], parent: bool = False) -> None:
    if not kind(found.st_mode):
        raise Untrusted(f"{path} is of another kind than expected")
    if found.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"{path} belongs to another user")
    # In a folder such as /tmp nobody can replace what is root's or this user's.
    sticky = parent and found.st_uid == 0 and found.st_mode & stat.S_ISVTX
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise Untrusted(f"{path} may be written by other users")


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of a package out of their texts."""

    def __init__(self, package: str, folder: str, found: typing.Mapping[str, bytes]) -> None:
        self.package = package
        self.folder = folder
        self.found = found

    def find_spec(self, fullname: str, path: typing.Any = None, target: typing.Any = None) -> typing.Any:
        """The spec of the package or of a module of it, else None."""
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        if self._name(fullname) not in self.found:
            # Nobody else is to find one by this name.
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return importlib.util.spec_from_loader(fullname, self, origin=self._path(fullname))

    def is_package(self, fullname: str) -> bool:
        """Whether it is the package itself."""
        return fullname == self.package

    def get_code(self, fullname: str) -> types.CodeType:
        """The code of the text that was hashed."""
        return self.source_to_code(self.found[self._name(fullname)], self._path(fullname))

    def get_source(self, fullname: str) -> str:
        """The text itself."""
        return self.found[self._name(fullname)].decode()

    def _name(self, fullname: str) -> str:
        return (fullname[len(self.package) + 1 :] or "__init__") + ".py"

    def _path(self, fullname: str) -> str:
        return os.path.join(self.folder, self._name(fullname))
