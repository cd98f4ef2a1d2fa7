# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switching engine: which model of a host is awake, and how to change that.

Pure Python and C(requests). It imports nothing from Ansible and uses relative imports only, so that
a copy of this folder works under any name.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import typing
import zipimport


class _ZipFinder:
    """Finds the modules of this package in the zip that Ansible sends to a host.

    Python's own finder compiles each of them twice, the first time only to learn its file name, and to compile the
    engine is much of what a switch costs its host.
    """

    @staticmethod
    def find_spec(
        name: str, path: typing.Sequence[str] | None = None, target: typing.Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module of this package, else None."""
        package, _dot, module = name.rpartition(".")
        if package != __name__ or not path:
            return None
        try:
            loader = zipimport.zipimporter(path[0])
            loader.is_package(name)
        except ImportError:
            return None
        return importlib.util.spec_from_file_location(name, os.path.join(path[0], module + ".py"), loader=loader)


_loader: object = getattr(__spec__, "loader", None)
if isinstance(_loader, zipimport.zipimporter):
    sys.meta_path.insert(0, _ZipFinder)
