-- SPDX-License-Identifier: MIT
-- Asks a model's server by hand and passes its stream on, event by event and unbuffered. nginx's own proxy can't do that once
-- something was answered, and takes the end of a server that died for the end of its answer.
local cjson = require "cjson.safe"
local gate = require "gateway.gate"
local http = require "gateway.http"
local servers = require "gateway.servers"

local upstream = {}

local CONNECT_SECONDS = 5
local SEND_SECONDS = 60
-- The first token of a long prompt behind a full server takes its time.
local READ_SECONDS = 3600
-- A body that the kernel takes at once.
local SMALL = 16384
-- An event that is longer is passed on in parts.
local LONGEST_EVENT = 1048576
local LONGEST_ERROR = 65536

-- What concerns the client's connection, what is said of the body anew, the key of the gateway, and encodings: the client has
-- its headers already.
local NOT_PASSED = {}
for name in
    ([[host connection keep-alive proxy-connection proxy-authorization proxy-authenticate te trailer transfer-encoding
    upgrade expect content-length authorization x-api-key api-key cookie accept-encoding x-gateway-hop]]):gmatch("%S+")
do
    NOT_PASSED[name] = true
end

-- How a kept connection ends that its server has closed. One that is silent is not followed by another: they may all be as dead.
local CLOSED = { closed = true, ["connection reset by peer"] = true, ["broken pipe"] = true }

local function failure(message)
    return { status = 502, code = "server_failed", message = message }
end

-- `one`: a model, or one of its servers, which is the gateway of another host: it is not to tell those who wait, who are told here.
local function head(request, one, length, is_gateway)
    -- The path has named the model, and the body does not.
    local prefix = is_gateway and request.unnamed and "/m/" .. request.model or ""
    local lines = {
        ngx.req.get_method() .. " " .. prefix .. request.uri .. " HTTP/1.1",
        "Host: " .. one.host .. ":" .. one.port,
        "Content-Length: " .. length,
        is_gateway and "X-Gateway-Hop: 1" or "Connection: close",
    }
    if type(one.api_key) == "string" then
        lines[#lines + 1] = "Authorization: Bearer " .. one.api_key
    end
    for name, values in pairs(ngx.req.get_headers(0, true)) do
        if not NOT_PASSED[name:lower()] then
            for _i, value in ipairs(type(values) == "table" and values or { values }) do
                lines[#lines + 1] = name .. ": " .. tostring(value)
            end
        end
    end
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

-- The body in memory, or its file and how long it is.
local function body_of()
    local data = ngx.req.get_body_data()
    if data then
        return data, nil, #data
    end
    local path = ngx.req.get_body_file()
    if not path then
        return "", nil, 0
    end
    local file, why = io.open(path, "rb")
    if not file then
        return nil, nil, why
    end
    local length = file:seek("end")
    file:seek("set", 0)
    return nil, file, length
end

local function send(server, request, one)
    local sock = server.sock
    local data, file, length = body_of()
    if not data and not file then
        return nil, length
    end
    local sent, why = sock:send(head(request, one, length, server.is_gateway) .. (data or ""))
    while sent and file do
        local piece = file:read(http.PIECE)
        if not piece then
            break
        end
        sent, why = sock:send(piece)
    end
    if file then
        file:close()
    end
    return sent, why
end

-- What a server answered instead of a stream, as an error.
local function refusal_of(sock, status, headers, name)
    local pieces, size = {}, 0
    http.read_body(sock, headers, function(piece)
        pieces[#pieces + 1] = piece
        size = size + #piece
        return size < LONGEST_ERROR
    end)
    local text = table.concat(pieces)
    local said = cjson.decode(text)
    local refusal = { status = status, code = "upstream_error", retry_after = tonumber(headers["retry-after"]) }
    if headers["x-should-retry"] == "false" then
        refusal.should_retry = false
    end
    if type(said) == "table" and type(said.error) == "table" and type(said.error.message) == "string" then
        -- Its own words, in the shape of the API that was asked.
        refusal.message = said.error.message
        refusal.said = said.error.code
        refusal.body = cjson.encode(said)
        return refusal
    end
    local detail = type(said) == "table" and (said.message or said.detail or said.error)
    if type(detail) ~= "string" then
        detail = (type(said) == "table" and cjson.encode(detail) or text):sub(1, 500)
    end
    refusal.message = string.format("The server of %s answered %d: %s", name, status, detail)
    return refusal
end

-- Takes pieces of a stream and gives whole events on, so that a stream that is cut ends between two of them.
local function events(give)
    local rest = {}
    local size = 0
    local self = { last = "" }
    function self.take(piece)
        local whole
        if size == 0 and piece:sub(-2) == "\n\n" then
            whole = piece
        else
            rest[#rest + 1] = piece
            size = size + #piece
            -- The end of an event may lie across two pieces; only then are they put together.
            local last = #rest > 1 and rest[#rest - 1]:sub(-3) .. piece or piece
            if last:find("\n\r?\n") then
                local text = table.concat(rest)
                local incomplete
                whole, incomplete = text:match("^(.*\n\r?\n)(.*)$")
                rest = incomplete ~= "" and { incomplete } or {}
                size = #incomplete
            elseif size > LONGEST_EVENT then
                whole = table.concat(rest)
                rest, size = {}, 0
            end
        end
        if whole then
            self.last = whole
            give(whole)
        end
    end
    -- What has no empty line after it: at the regular end of a stream that counts.
    function self.flush()
        if size > 0 then
            give(table.concat(rest))
        end
    end
    return self
end

-- A whole answer that is no stream, as one event.
local function as_event(text)
    return "data: " .. text:gsub("\r?\n", "\ndata: ") .. "\n\n"
end

-- What another gateway answers that could not begin with a request: another one may.
local NOT_BEGUN = { manager_unavailable = true, starting = true }

-- Sends the request and reads the head of the answer, into `server`. `whole`: also of one that is an error. Returns nil, or the error.
local function ask(server, request, one, whole)
    local broken
    local function send_all()
        local sent, why = send(server, request, one)
        broken = not sent and why or nil
        server.sent = sent
    end
    local data = ngx.req.get_body_data()
    if data and #data <= SMALL then
        send_all()
    else
        -- Aside: a server may answer before it has read everything, and read no further.
        server.sender = ngx.thread.spawn(send_all)
    end
    local status, headers = http.read_head(server.sock)
    if not status then
        local reason = broken or headers
        local refusal = failure(string.format("The server of %s did not answer: %s.", server.name, reason))
        refusal.broken = true
        refusal.closed = CLOSED[reason]
        return refusal
    end
    server.status, server.headers = status, headers
    if server.is_gateway and status == 401 then
        local refusal = failure(string.format("The server of %s does not take this gateway's key.", server.name))
        refusal.elsewhere = true
        return refusal
    elseif status == 200 or (whole and status ~= 502 and status ~= 503) then
        return nil
    end
    local refusal = refusal_of(server.sock, status, headers, server.name)
    refusal.broken = status == 502
    refusal.elsewhere = status == 503 and NOT_BEGUN[refusal.said]
    return refusal
end

local function close(server)
    -- One that still sends keeps the connection from being closed; before, nothing could be read any more.
    if server.sender then
        ngx.thread.kill(server.sender)
    end
    server.sock:close()
end

-- Asks a model's one server, or one of its several. Returns what `stream` takes, or nil and the error.
local function ask_one(request, model, one, whole)
    local is_gateway = one ~= model
    local name = (request.name or request.model) .. (is_gateway and " on " .. one.name or "")
    local sock, why, ok
    if is_gateway then
        sock, why = servers.connect(model.id, one, SEND_SECONDS, READ_SECONDS)
    else
        sock = ngx.socket.tcp()
        sock:settimeouts(CONNECT_SECONDS * 1000, SEND_SECONDS * 1000, READ_SECONDS * 1000)
        ok, why = sock:connect(one.host, one.port)
        sock = ok and sock
    end
    if sock and one.tls == true then
        ok, why = sock:sslhandshake(nil, nil, false)
        if not ok then
            sock:close()
            sock = nil
        end
    end
    if not sock then
        local refusal = failure(string.format("The server of %s can't be reached: %s.", name, why))
        refusal.elsewhere = true
        return nil, refusal
    end
    local server = { sock = sock, name = name, is_gateway = is_gateway, request = request, one = one }
    local reused = is_gateway and sock:getreusedtimes() > 0
    local refusal = ask(server, request, one, whole)
    if refusal then
        close(server)
        if reused and refusal.closed then
            -- A server may end a connection that is kept just when it is used again.
            return ask_one(request, model, one, whole)
        end
        return nil, refusal
    end
    return server
end

-- Asks the servers of a model that has several, one after the other until one answers.
local function ask_several(request, model, whole)
    local refusal = failure("No host has " .. model.id .. " active.")
    refusal.again = true
    while true do
        local one = servers.choose(model, request)
        if not one then
            return nil, refusal
        end
        servers.take(model, one)
        local server, why = ask_one(request, model, one, whole)
        if server or not (why.broken or why.elsewhere) then
            return server, why
        end
        refusal = why
        refusal.again = true
        servers.failed(request, one, why.broken)
        model = gate.model(request.model) or model
    end
end

-- Sends the request to a server of its model and reads the head of a good answer; with `whole`, of any. Returns what `stream` and
-- `pass` take, or nil and the error: status, code, message, perhaps body (the JSON text as the server gave it), and `again` where
-- `servers.again` may help.
function upstream.ask(request, whole)
    local model = gate.model(request.model)
    if not model then
        return nil, failure("The model " .. (request.name or request.model) .. " was removed.")
    elseif model.servers then
        return ask_several(request, model, whole)
    end
    return ask_one(request, model, model, whole)
end

-- Whether a line of the text begins in one of these ways. Within JSON there is no line break.
local function ends_with(text, ends)
    for _i, line in ipairs(ends) do
        if ("\n" .. text):find("\n" .. line, 1, true) then
            return true
        end
    end
    return false
end

local function read_answer(server, ends, give)
    if (server.headers["content-type"] or ""):find("text/event-stream", 1, true) then
        local stream = events(give)
        local complete, how = http.read_body(server.sock, server.headers, stream.take)
        if complete and how == "closed" and not ends_with(stream.last, ends) then
            return nil, "closed"
        elseif complete then
            stream.flush()
        end
        return complete, how
    end
    local pieces = {}
    local complete, how = http.read_body(server.sock, server.headers, function(piece)
        pieces[#pieces + 1] = piece
    end)
    if complete then
        give(as_event(table.concat(pieces)))
    end
    return complete, how
end

-- `begun`: something of the answer was given on.
local function broke_off(server, how, begun)
    local reason = how == "timeout" and "no more came" or how
    local refusal = failure(string.format("The server of %s broke off its answer: %s.", server.name, reason))
    if server.is_gateway and not begun then
        servers.failed(server.request, server.one, true)
        refusal.again = true
    end
    return refusal
end

-- Gives the events of a server's answer to `give`, as they come. `ends`: how the last event of a complete stream may
-- begin. Returns nil when it was complete, or the error, with `again` as `ask` does.
function upstream.stream(server, ends, give)
    local begun = false
    local complete, how = read_answer(server, ends, function(event)
        begun = true
        give(event)
    end)
    close(server)
    return not complete and broke_off(server, how, begun) or nil
end

-- Gives the body of an answer to `give`, as it comes. Returns nil when it was complete, or the error, with `again` as `ask` does.
function upstream.pass(server, give)
    local headers = server.headers
    local begun, complete, how = false, true, nil
    if server.status ~= 204 and server.status ~= 304 then
        complete, how = http.read_body(server.sock, headers, function(piece)
            begun = true
            give(piece)
        end)
    end
    if complete and not how and server.sent and (headers.connection or ""):lower() ~= "close" then
        server.sock:keep()
    else
        close(server)
    end
    return not complete and broke_off(server, how, begun) or nil
end

return upstream
