#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs Debian's or Ubuntu's nginx with Lua, unless it is here. Tests start it by themselves: the package's own service is not
# started.
set -euo pipefail
modules=/usr/lib/nginx/modules
if command -v nginx >/dev/null && [ -e $modules/ngx_http_lua_module.so ] && [ -e $modules/ndk_http_module.so ]; then exit; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
policy=/usr/sbin/policy-rc.d
if [ "$(id -u)" -eq 0 ] && [ ! -e $policy ]; then
    # What maintainer scripts ask before they start a service: 101 forbids it.
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
bash "$here/apt.sh" nginx libnginx-mod-http-lua lua-resty-core lua-cjson
