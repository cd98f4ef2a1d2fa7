# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# SPDX-License-Identifier: MIT
"""The switching engine: which model of a host is awake, and how to change that.

Pure Python and C(requests). It imports nothing from Ansible and uses relative imports only, so that
a copy of this folder works under any name.
"""
