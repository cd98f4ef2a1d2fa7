-- SPDX-License-Identifier: MIT
-- Variables of nginx's for each request: where nginx has them, without a text of Lua's, which has to be collected again; and as texts, in a
-- way that LuaJIT compiles whatever it begins with. It compiles no function by itself that ends by calling one of its own, as those of
-- ngx.var do; so what follows depended on chance.
local base = require "resty.core.base"
local ffi = require "ffi"
-- It declares the function.
require "resty.core.var"

local raw = {}

local C = ffi.C
local get_request, tonumber, text_of = base.get_request, tonumber, ffi.string

local value, length, why = ffi.new("char *[1]"), ffi.new("size_t[1]"), ffi.new("char *[1]")
-- Where nginx writes the name in small letters.
local small = ffi.new("char[64]")

-- How long the value is, nil if there is none; and where, in `at`, until the request ends or sets the variable.
function raw.look(name, at)
    if C.ngx_http_lua_ffi_var_get(get_request(), name, #name, small, 0, value, length, why) ~= 0 then
        return nil
    end
    if at then
        at[0] = value[0]
    end
    local size = tonumber(length[0])
    return size
end

-- The value, nil if there is none.
function raw.text(name)
    if C.ngx_http_lua_ffi_var_get(get_request(), name, #name, small, 0, value, length, why) ~= 0 then
        return nil
    end
    local text = text_of(value[0], length[0])
    return text
end

return raw
