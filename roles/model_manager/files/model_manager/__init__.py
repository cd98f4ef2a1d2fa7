# SPDX-License-Identifier: MIT
"""The model manager: the resident service of a host that switches its models, over HTTP and by itself.

The engine does the switching, and it alone knows what servers are. This package decides who is switched to when, and
tells what happens.
"""
