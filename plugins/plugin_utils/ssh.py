# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of ssh with which a connection to a host that hangs ends."""

from __future__ import annotations

from ansible import constants, context

# Given up after 15 seconds without a sign of life. Of two values ssh takes the first, so one that is configured counts.
KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


def keep_alive(of_inventory: str) -> str:
    """The options of the inventory, else of the command line, else of the configuration, with keep-alives behind."""
    configured = constants.config.get_config_value("ssh_extra_args", plugin_type="connection", plugin_name="ssh")
    chosen = of_inventory or context.CLIARGS.get("ssh_extra_args") or configured or ""
    return f"{chosen} {KEEP_ALIVE}".strip()
