-- SPDX-License-Identifier: MIT
-- How much of requests' bodies is on the disk, of all workers: nginx writes there what is too long for memory, before anybody knows the
-- model, and keeps it as long as the request is here. What is too much is refused before it is read; what a worker that was killed has
-- left is removed.
local address = require "gateway.address"
local config = require "gateway.config"
local limits = require "gateway.limits"
local process = require "gateway.process"
local raw = require "gateway.raw"
local var = ngx.var

-- `folder`: where the files are.
local spool = { folder = "" }

-- client_body_buffer_size.
local IN_MEMORY = 65536
local COUNT = "spool"
-- Seconds until files are looked at once more that could not be listed, or of which it could not be told who has them open.
local AGAIN = 5
-- nginx numbers its files, over all workers.
local NAME = "^%d%d%d%d%d%d%d%d%d%d$"

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
    local digits = raw.look("content_length")
    if digits and digits < 5 then
        return false
    end
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
        limits.look_again()
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

-- From when on files are to be looked at, and those that were here when a worker was found to have ended.
local seen

-- Those that no worker has open; false where that can't be told. A worker has a file open from its beginning to its end.
local function remove_left(names)
    local used = {}
    for _i, pid in ipairs(limits.pids()) do
        local files = process.open_files(pid)
        if not files then
            -- It may be any.
            return false
        end
        for name in pairs(files) do
            used[name] = true
        end
    end
    for _i, name in ipairs(names) do
        if name:find(NAME) and not used[name] then
            os.remove(spool.folder .. "/" .. name)
        end
    end
    return true
end

-- For each second or so. A file is removed a while after it was seen: one that is just being made is not open yet. Whoever ends
-- meanwhile is found to have ended, too.
function spool.tidy()
    local now = ngx.now()
    if not seen and not ngx.worker.exiting() and limits.lost() then
        seen = { from = now }
    end
    if not seen or now < seen.from then
        return
    end
    if not seen.names then
        seen.names = process.names(spool.folder)
        seen.from = now + (seen.names and 0.5 or AGAIN)
    elseif remove_left(seen.names) then
        seen = nil
    else
        seen.from = now + AGAIN
    end
end

return spool
