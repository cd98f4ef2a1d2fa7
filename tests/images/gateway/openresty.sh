#!/bin/sh
# SPDX-License-Identifier: MIT
exec python3 /usr/local/lib/openresty.py "$@"
