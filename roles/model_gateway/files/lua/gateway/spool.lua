-- SPDX-License-Identifier: MIT
-- How much of requests' bodies is on the disk, of all workers: nginx writes there what is too long for memory, before anybody knows the
-- model, and keeps it as long as the request is here. What is too much is refused before it is read.
local address = require "gateway.address"
local config = require "gateway.config"
local limits = require "gateway.limits"
local var = ngx.var

local spool = {}

-- client_body_buffer_size.
local IN_MEMORY = 65536
local COUNT = "spool"

local FULL = {
    status = 429,
    code = "too_much_waiting",
    message = "The long requests that are here already have as many bytes as may be (max_spool_bytes).",
    retry_after = 5,
}

-- What is reserved for each request of this worker, by its address.
local reserved = {}

local function reserve(this, bytes)
    reserved[this] = bytes
    limits.add(COUNT, bytes)
end

-- Whether the body of this request goes to the disk, or may: its length is not said.
function spool.needed()
    local length = tonumber(var.http_content_length)
    return not (length and length <= IN_MEMORY)
end

-- The request's end, in the log phase, or that of its body.
function spool.leave()
    local this = address()
    local bytes = reserved[this]
    if bytes then
        reserved[this] = nil
        limits.add(COUNT, -bytes)
    end
end

-- Reserves room for the body, before it is read. Returns nil, or the error.
function spool.admit()
    local most = config.settings.max_body_bytes
    reserve(address(), math.min(tonumber(var.http_content_length) or most, most))
    if limits.count(COUNT) > config.settings.max_spool_bytes then
        limits.sweep(true)
    end
    if limits.count(COUNT) > config.settings.max_spool_bytes then
        -- Not at its end: nginx may go on receiving for a while what it throws away.
        spool.leave()
        return FULL
    end
    return nil
end

-- Gives back what was reserved and is not used: the body has been read.
function spool.settle()
    local length = ngx.req.get_body_file() and tonumber(var.content_length) or 0
    local this = address()
    if length < reserved[this] then
        spool.leave()
        reserve(this, length)
    end
end

return spool
