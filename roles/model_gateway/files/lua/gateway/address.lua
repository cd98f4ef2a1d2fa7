-- SPDX-License-Identifier: MIT
-- The address of the request that is being handled, as a key for tables of this worker. It is the same from the first handler to the
-- log phase, also where nginx redirects a request, which loses ngx.ctx; and costs less than a variable of nginx's, which is looked up
-- by its name each time.
local base = require "resty.core.base"
local ffi = require "ffi"

local get_request, cast, tonumber = base.get_request, ffi.cast, tonumber
local integer = ffi.typeof("uintptr_t")

return function()
    -- No call at the end: LuaJIT would not compile this by itself.
    local number = tonumber(cast(integer, get_request()))
    return number
end
