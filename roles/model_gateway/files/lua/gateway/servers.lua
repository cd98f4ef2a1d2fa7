-- SPDX-License-Identifier: MIT
-- The servers of a model that has several: each is the gateway of another host. Which of them a request is sent to, and when it may be
-- sent to another one. How many requests each has is known to all workers, and what a killed one had is taken back (limits.lua).
local gate = require "gateway.gate"
local limits = require "gateway.limits"
local var = ngx.var

local servers = {}

-- Whoever tells the state leaves out a server within a second that is gone.
local NOTICE_SECONDS = 2
local LOOK_SECONDS = 0.05
-- A request that ends the connections of so many servers is probably the reason.
local MOST_BROKEN = 3
local CONNECT_SECONDS = 1
-- How often a request that waits for an answer looks whether its server is still there.
local WATCH_SECONDS = 1

-- A gateway keeps connections for longer than that.
local KEEP_SECONDS = 60
local KEPT = 128

local turn = 0
-- When a server that is no longer listed was looked for, and whether it was there.
local looked = {}

local function count_name(id, name)
    return "server " .. id .. "\n" .. name
end

local function load_of(id, one)
    return limits.count(count_name(id, one.name)) + (type(one.load) == "number" and one.load or 0)
end

-- The server with the least to do that this request has not tried yet, by turns among equals; nil: there is none.
function servers.choose(model, request)
    local list, tried = model.servers or {}, request.tried
    local best, least
    if request.broken >= MOST_BROKEN then
        return nil
    end
    turn = turn + 1
    for number = 1, #list do
        local one = list[(turn + number) % #list + 1]
        if not tried[one.name] then
            local load = load_of(model.id, one)
            if not best or load < least then
                best, least = one, load
            end
        end
    end
    return best
end

-- Adds to the counts of the models' requests how many of them each server has: who tells the load of others has to leave them out.
function servers.tell(counts)
    for _i, model in ipairs(gate.models()) do
        local count = counts[model.id]
        if count and model.servers then
            count.servers = {}
            for _j, one in ipairs(model.servers) do
                count.servers[one.name] = math.max(0, limits.count(count_name(model.id, one.name)))
            end
        end
    end
    return counts
end

-- The request's end, or that of its time with a server. For the log phase.
function servers.leave()
    local name = var.gateway_server
    if name and name ~= "" then
        limits.add(count_name(gate.counted(), name), -1)
    end
end

-- The request is at this server from now on.
function servers.take(model, one)
    servers.leave()
    limits.add(count_name(model.id, one.name), 1)
    var.gateway_server = one.name
end

-- A server has failed this request before it had answered. `broken`: after it had got it.
function servers.failed(request, one, broken)
    request.tried[one.name] = true
    request.broken = request.broken + (broken and 1 or 0)
end

-- All servers have failed this request, and nothing of an answer was sent. Returns "ask" if there is another one by now; "wait" if the
-- gate is closed by now, with the request's counts given back; else nil, after a moment: it has failed.
function servers.again(request)
    local until_then = ngx.now() + NOTICE_SECONDS
    while request.broken < MOST_BROKEN do
        gate.fresh()
        local model = gate.model(request.model)
        if not model then
            return nil
        elseif model.gate ~= "open" then
            servers.leave()
            gate.leave()
            var.gateway_server = ""
            request.tried = {}
            return "wait"
        elseif servers.choose(model, request) then
            return "ask"
        elseif ngx.now() >= until_then then
            return nil
        end
        ngx.sleep(LOOK_SECONDS)
    end
    return nil
end

-- ---- whether a server is still there

local function listed(id, one)
    local model = gate.model(id)
    for _i, each in ipairs(model and model.servers or {}) do
        if each.name == one.name and each.host == one.host and each.port == one.port then
            return true
        end
    end
    return false
end

-- Whether somebody listens there; looked at once a second, by whoever asks first.
local function reachable(one)
    local now = ngx.now()
    local name = one.host .. ":" .. one.port
    local last = looked[name]
    if last and now - last.at < WATCH_SECONDS then
        return last.there
    end
    local this = { at = now, there = not last or last.there }
    looked[name] = this
    local sock = ngx.socket.tcp()
    sock:settimeout(CONNECT_SECONDS * 1000)
    -- Not one of the connections that are kept: it may be as dead as the one that is asked about.
    this.there = sock:connect(one.host, one.port, { pool = "looking" }) ~= nil
    sock:close()
    return this.there
end

-- A host that has lost its power closes no connection. So a request asks, while nothing comes, whether its server is still listed, and
-- if not, whether it can be reached: where the manager alone has ended, all requests go on.
local Watched = {}
Watched.__index = Watched

local function watch(self, read)
    local since = ngx.now()
    while true do
        local data, why = read()
        if data or why ~= "timeout" then
            return data, why
        elseif ngx.now() - since >= self.patience then
            return nil, "timeout"
        elseif not listed(self.id, self.one) and not reachable(self.one) then
            return nil, "its host is gone"
        end
    end
end

function Watched:receive(what)
    local partial = ""
    return watch(self, function()
        local data, why, rest = self.sock:receive(what)
        if data then
            return partial .. data
        end
        partial = partial .. (rest or "")
        return nil, why
    end)
end

function Watched:receiveany(most)
    return watch(self, function()
        return self.sock:receiveany(most)
    end)
end

for _i, name in ipairs({ "send", "sslhandshake", "getreusedtimes", "close" }) do
    Watched[name] = function(self, ...)
        local sock = self.sock
        return sock[name](sock, ...)
    end
end

-- Leaves the connection to requests to come.
function Watched:keep()
    return self.sock:setkeepalive(KEEP_SECONDS * 1000, KEPT)
end

-- A socket to one of a model's servers that gives up after so many seconds, or when its server is gone.
function servers.connect(id, one, send_seconds, read_seconds)
    local sock = ngx.socket.tcp()
    sock:settimeouts(CONNECT_SECONDS * 1000, send_seconds * 1000, WATCH_SECONDS * 1000)
    -- Numbers of ports are given again, with TLS or without.
    local pool = (one.tls == true and "tls " or "") .. one.host .. ":" .. one.port
    local ok, why = sock:connect(one.host, one.port, { pool = pool })
    if not ok then
        return nil, why
    end
    return setmetatable({ sock = sock, id = id, one = one, patience = read_seconds }, Watched)
end

return servers
