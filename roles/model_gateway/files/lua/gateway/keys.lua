-- SPDX-License-Identifier: MIT
-- The clients' API keys: who asks, for which models, and how much. The keys' hashes are what is known of them.
local ffi = require "ffi"
local config = require "gateway.config"
local gate = require "gateway.gate"
local raw = require "gateway.raw"
local var = ngx.var

ffi.cdef [[
typedef struct { uint32_t words[64]; } gateway_sha256;
int SHA256_Init(gateway_sha256 *);
int SHA256_Update(gateway_sha256 *, const void *, size_t);
int SHA256_Final(unsigned char *, gateway_sha256 *);
]]

local M = {}

local MISSING = {
    status = 401,
    code = "missing_api_key",
    message = "An API key is needed: send it as Authorization: Bearer KEY, or as x-api-key.",
}
local WRONG = { status = 401, code = "invalid_api_key", message = "This API key is not known here." }
local FOREIGN = {
    status = 403,
    code = "foreign_page",
    message = "A web page of another site may not ask here without an API key: set model_gateway_api_keys.",
}
local STRANGE = {
    status = 403,
    code = "host_not_allowed",
    message = "The Host of this request is not allowed without an API key: add its name to model_gateway_allowed_hosts, "
        .. "or set model_gateway_api_keys.",
}
local MANY = 1000

-- The keys of headers that were seen, so that they are hashed once. Only of headers that are right.
local seen, seen_number = {}, 0

local context, digest = ffi.new("gateway_sha256"), ffi.new("unsigned char[32]")

-- The SHA-256 of a text in hexadecimal digits.
local function sha256(text)
    ffi.C.SHA256_Init(context)
    ffi.C.SHA256_Update(context, text, #text)
    ffi.C.SHA256_Final(digest, context)
    return (ffi.string(digest, 32):gsub(".", function(byte)
        return string.format("%02x", byte:byte())
    end))
end

local function look_up(header, text)
    local key = config.keys[sha256(text)]
    if key then
        if seen_number >= MANY then
            seen, seen_number = {}, 0
        end
        seen[header], seen_number = key, seen_number + 1
    end
    return key
end

-- Requests a minute: those of this minute, and of the last one as much as still lies within sixty seconds. Returns nil, or after
-- how many seconds to ask again.
local function too_many(key)
    local dict, now = ngx.shared.gateway, ngx.now()
    local minute = math.floor(now / 60)
    local prefix = "minute:" .. key.name .. ":"
    local before = dict:get(prefix .. (minute - 1)) or 0
    local name = prefix .. minute
    local this = dict:get(name) or 0
    local within = now - minute * 60
    if this + before * (1 - within / 60) + 1 > key.requests_per_minute then
        -- Either what was asked in the last minute has aged enough, or this minute has to end.
        local room = key.requests_per_minute - 1 - this
        local wait = 60 - within
        if before > 0 and room >= 0 then
            wait = math.min(wait, 60 * (1 - room / before) - within)
        end
        return math.max(wait, 1)
    end
    dict:incr(name, 1, 0, 120)
    return nil
end

-- The Host headers that were found right.
local known, known_number = {}, 0

-- Whether the client calls the gateway by a name that may be anybody's: the browser of a person who reaches it does so for a page whose
-- name leads here (DNS rebinding). An address is nobody's name, and a browser always sends one of the two.
local function is_strange()
    local host = raw.text("http_host")
    if not host or known[host] then
        return false
    end
    local name = host:lower():gsub(":%d*$", ""):gsub("%.$", "")
    if not (config.hosts[name] or name:find("^%d+%.%d+%.%d+%.%d+$") or name:find("^%[[%x:.]+%]$")) then
        return true
    end
    if known_number >= MANY then
        known, known_number = {}, 0
    end
    known[host], known_number = true, known_number + 1
    return false
end

-- Whether the header is there and not empty.
local function says(name)
    local length = raw.look(name)
    return length ~= nil and length > 0
end

-- Whether a browser asks for a page that comes from elsewhere. Only browsers send these headers.
local function is_foreign()
    if not (says("http_origin") or says("http_sec_fetch_site")) then
        return false
    end
    local site, origin = var.http_sec_fetch_site, var.http_origin
    if site and site ~= "same-origin" and site ~= "none" then
        return true
    end
    return origin ~= nil and origin ~= var.scheme .. "://" .. (var.http_host or "")
end

-- The key that this request has shown; nil where none is asked for. The second value is the error, if it may not go on.
function M.check()
    if not config.guarded then
        return nil, is_strange() and STRANGE or is_foreign() and FOREIGN or nil
    end
    local header = raw.text("http_authorization")
    local key = header and seen[header]
    if not key then
        local text = header and header:match("^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+)%s*$")
        key = text and look_up(header, text)
        if not key then
            -- As Anthropic's clients do. Its cache entries can't be taken for those of the other header, which has a blank.
            local other = var.http_x_api_key
            key = other and (seen[other] or (not other:find("%s") and look_up(other, other)))
            if not key then
                return nil, (text or other) and WRONG or MISSING
            end
        end
    end
    var.gateway_key = key.name
    return key
end

-- Whether the key may use the model.
function M.allows(key, id)
    return not key or key.all or key.models[id] == true
end

-- Count the request for the key's own limits. Returns nil, or the error.
function M.admit(key)
    if not key then
        return nil
    end
    if key.max_in_flight then
        -- Counted first: two at once may both be refused, but never both be let in past the limit.
        gate.add("key", key.name, 1)
        if gate.sum("key", key.name) > key.max_in_flight then
            gate.add("key", key.name, -1)
            return {
                status = 429,
                code = "too_many_at_once",
                message = "This API key may have " .. key.max_in_flight .. " requests at once, and has them.",
                retry_after = 1,
            }
        end
        var.gateway_key_counted = key.name
    end
    local wait = key.requests_per_minute and too_many(key)
    if wait then
        return {
            status = 429,
            code = "rate_limit_exceeded",
            message = "This API key may make " .. key.requests_per_minute .. " requests a minute, and has made them.",
            retry_after = wait,
        }
    end
    return nil
end

-- End what admit has begun for this request, if it has: once, in the log phase.
function M.leave()
    local name = var.gateway_key_counted
    if name and name ~= "" then
        gate.add("key", name, -1)
    end
end

return M
