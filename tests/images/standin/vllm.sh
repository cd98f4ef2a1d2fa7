#!/bin/sh
# SPDX-License-Identifier: MIT
exec python3 /opt/standin/vllm_standin.py "$@"
