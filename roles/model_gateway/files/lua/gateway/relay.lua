-- SPDX-License-Identifier: MIT
-- Answers a request of a model that has several servers. By hand: nginx's own proxy can't tell a refusal by its text, wait again before
-- it asks another one, or leave one that is gone without a word.
local errors = require "gateway.errors"
local hold = require "gateway.hold"
local servers = require "gateway.servers"
local told = require "gateway.told"
local upstream = require "gateway.upstream"
local var = ngx.var

local relay = {}

-- What concerns the connection to the server, and what this gateway says itself.
local NOT_PASSED = {}
for name in
    ([[connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding upgrade date server
    x-gateway-server x-queue-wait-seconds x-queue-place]]):gmatch("%S+")
do
    NOT_PASSED[name] = true
end

local LOOP = {
    status = 508,
    code = "gateway_loop",
    message = "The request comes from a gateway that routes to this one, and this one routes to others: only a host's own gateway may be "
        .. "behind another one.",
}

-- The answer as it waited at its own host, too.
local function count_wait(headers)
    local there = tonumber(headers["x-queue-wait-seconds"])
    if there and there > 0 then
        var.gateway_waited = string.format("%.3f", (tonumber(var.gateway_waited) or 0) + there)
    end
end

local function pass_headers(server)
    local headers, passed = server.headers, {}
    for _i, header in ipairs(headers) do
        local name, value = header[1], header[2]
        local lower = name:lower()
        local before = passed[lower]
        if before then
            before[#before + 1] = value
        elseif not NOT_PASSED[lower] and lower:sub(1, 8) ~= "x-accel-" then
            passed[lower] = { value, name = name }
        end
    end
    for _lower, values in pairs(passed) do
        ngx.header[values.name] = #values > 1 and values or values[1]
    end
end

local function begin(server)
    ngx.status = server.status
    count_wait(server.headers)
    pass_headers(server)
    ngx.header["X-Gateway-Server"] = var.gateway_server
    ngx.send_headers()
end

-- The event that ends a stream whose server has broken off, from the last two pieces of it; nil: its end has to be seen otherwise. Within
-- an event nothing can be said.
local function last_word(request, server, before, last, refusal)
    local events = (server.headers["content-type"] or ""):find("text/event-stream", 1, true)
    if request.stream and events and (before .. last):find("\n\r?\n$") then
        return told.failure(request.path, refusal)
    end
end

-- Passes the answer on. Returns the error if the server has broken off before anything of it came, else not at all. The head goes with
-- the first piece: until then another server may answer.
local function pass(request, server, began)
    local begun, before, last = false, "", ""
    local refusal = upstream.pass(server, function(piece)
        if not begun then
            begun = true
            begin(server)
        end
        before, last = last, piece
        ngx.print(piece)
        if not ngx.flush(true) then
            return ngx.exit(ngx.ERROR)
        end
    end)
    if refusal and not begun then
        return refusal
    elseif not begun then
        begin(server)
    end
    var.gateway_told_seconds = string.format("%.3f", ngx.now() - began)
    if refusal then
        var.gateway_error = refusal.code
        local event = last_word(request, server, before, last, refusal)
        if not event then
            -- A break that the client sees: its connection ends, and its answer does not.
            return ngx.exit(ngx.ERROR)
        end
        ngx.print(event)
    end
    ngx.eof()
    return ngx.exit(ngx.HTTP_OK)
end

-- Answers the request, in the access phase of the location where requests wait, whether its count is taken or not.
function relay.answer(request)
    if var.http_x_gateway_hop then
        return errors.answer(LOOP)
    end
    request.tried, request.broken = {}, 0
    local entered = request.entered
    while true do
        if not entered then
            local ok, refusal = hold.wait(request)
            if not ok then
                return errors.answer(refusal)
            end
        end
        local began = ngx.now()
        local server, refusal = upstream.ask(request, true)
        if server and server.status == 200 and request.stream and told.unframed(request.path) then
            return told.stream(request, server)
        elseif server then
            refusal = pass(request, server, began)
        end
        local how = refusal.again and servers.again(request)
        if not how then
            return errors.answer(refusal)
        end
        entered = how == "ask"
    end
end

return relay
