#!/bin/sh
# SPDX-License-Identifier: MIT
# As pip installs it, for where this Python is.
exec /opt/vllm/bin/python -c 'import sys; from huggingface_hub.cli.hf import main; sys.exit(main())' "$@"
