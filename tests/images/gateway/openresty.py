# SPDX-License-Identifier: MIT
"""Debian's nginx as OpenResty is called: it has Lua in it, Debian's has modules to load."""

from __future__ import annotations

import os
import sys

MODULES = " ".join(f"load_module /usr/lib/nginx/modules/{name}_module.so;" for name in ("ndk_http", "ngx_http_lua"))


def main() -> None:
    """Become nginx, in this process."""
    arguments = sys.argv[1:]
    if "-g" in arguments:
        place = arguments.index("-g") + 1
        arguments[place] = f"{MODULES} {arguments[place]}"
    else:
        arguments += ["-g", MODULES]
    os.execv("/usr/sbin/nginx", ["nginx", *arguments])


main()
