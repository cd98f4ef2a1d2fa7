# SPDX-License-Identifier: MIT
"""What a worker takes /proc to tell of other processes: nobody is dead, and no file unused, for want of an answer."""

from __future__ import annotations

import pytest
import requests

from tests.gateway.fake_link import playing
from tests.gateway.gatewaylib import Start

# As where a security module lets a process list the files of another, and not see which ones they are.
UNREADABLE = """
    local real, errno = require "ffi", ...
    local C = setmetatable({}, { __index = function(_all, name) return real.C[name] end })
    C.readlink = function() return -1 end
    local played = { C = C, cdef = function() end, errno = function() return errno end }
    package.loaded.ffi = setmetatable(played, { __index = real })
    local path = package.searchpath("gateway.process", package.path)
    local tried = loadfile(path)()
    package.loaded.ffi = real
    local files = tried.open_files(ngx.worker.pid())
    return files == nil and "unknown" or next(files) == nil and "none"
"""


def told(start: Start, lua: str) -> str:
    """What a worker says to a piece of Lua."""
    place = "        location = /health {"
    location = f"        location = /told {{ content_by_lua_block {{ ngx.print((function() {lua} end)()) }} }}\n"
    with playing() as manager:
        gateway = start(manager, known=False, edit=lambda text: text.replace(place, location + place))
        return requests.get(gateway.url + "/told", timeout=10).text


@pytest.mark.parametrize(("errno", "answer"), [(13, "unknown"), (2, "none")])
def test_files_of_which_nobody_tells_are_no_unused_ones(start: Start, errno: int, answer: str) -> None:
    """One that was closed a moment ago is none."""
    assert told(start, UNREADABLE.replace("...", str(errno))) == answer


def test_what_could_not_be_told_is_looked_at_again(start: Start) -> None:
    """A file that a killed worker has left, while nobody tells which ones the others have open."""
    lua = """
        local known, removed, looked = false, {}, 0
        local lost = true
        local function open_files() looked = looked + 1 return known and { ["0000000002"] = true } or nil end
        local played = {
            ["gateway.process"] = {
                names = function() return { ".", "0000000001", "0000000002", "else" } end, open_files = open_files,
            },
            ["gateway.limits"] = {
                pids = function() return { 1 } end, lost = function() local was = lost lost = false return was end,
            },
        }
        local real = {}
        for name, module in pairs(played) do
            real[name], package.loaded[name] = package.loaded[name], module
        end
        local spool = loadfile(package.searchpath("gateway.spool", package.path))()
        for name, module in pairs(real) do
            package.loaded[name] = module
        end
        spool.folder = "/nowhere"
        local remove = os.remove
        os.remove = function(name) removed[#removed + 1] = name end
        for _i, seconds in ipairs { 0, 0.6, 0, 5.1, 0.6 } do
            ngx.sleep(seconds)
            spool.tidy()
            known = looked > 0
        end
        os.remove = remove
        return looked .. " " .. table.concat(removed, " ")
    """
    assert told(start, lua) == "2 /nowhere/0000000001"


def test_who_has_ended(start: Start) -> None:
    lua = """
        local process = require "gateway.process"
        local own = process.identity(ngx.worker.pid())
        local pid, began = own:match("^(%d+)%.(%d+)$")
        local all = { own, pid .. "." .. began + 1, pid, pid .. ":" .. began, pid .. ":" .. began + 1, "4000000.1" }
        for i, one in ipairs(all) do
            all[i] = tostring(process.ended(one))
        end
        return table.concat(all, " ")
    """
    # Of whom only the number is known, he may live. With a colon: a worker that an earlier version of this has begun.
    assert told(start, lua).split() == ["false", "true", "false", "false", "true", "true"]
