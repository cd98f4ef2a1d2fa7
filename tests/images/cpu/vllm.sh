#!/bin/sh
# SPDX-License-Identifier: MIT
exec /opt/vllm/bin/python /opt/vllm/vllm.py "$@"
