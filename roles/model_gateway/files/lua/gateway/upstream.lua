-- SPDX-License-Identifier: MIT
-- Asks a model's server by hand and passes its stream on, event by event and unbuffered. nginx's own proxy can't do that once
-- something was answered, and takes the end of a server that died for the end of its answer.
local cjson = require "cjson.safe"
local gate = require "gateway.gate"

local upstream = {}

local CONNECT_SECONDS = 5
local SEND_SECONDS = 60
-- The first token of a long prompt behind a full server takes its time.
local READ_SECONDS = 3600
local PIECE = 65536
-- An event that is longer is passed on in parts.
local LONGEST_EVENT = 1048576
local LONGEST_ERROR = 65536

-- What concerns the client's connection, what is said of the body anew, the key of the gateway, and encodings: the client has
-- its headers already.
local NOT_PASSED = {}
for name in
    ([[host connection keep-alive proxy-connection proxy-authorization proxy-authenticate te trailer transfer-encoding
    upgrade expect content-length authorization x-api-key api-key cookie accept-encoding]]):gmatch("%S+")
do
    NOT_PASSED[name] = true
end

local function failure(code, message)
    return { status = 502, code = code, message = message }
end

local function head(request, model, length)
    local lines = {
        ngx.req.get_method() .. " " .. request.uri .. " HTTP/1.1",
        "Host: " .. model.host .. ":" .. model.port,
        "Connection: close",
        "Content-Length: " .. length,
    }
    if type(model.api_key) == "string" then
        lines[#lines + 1] = "Authorization: Bearer " .. model.api_key
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

local function send(sock, request, model)
    local data, file, length = body_of()
    if not data and not file then
        return nil, length
    end
    local sent, why = sock:send(head(request, model, length) .. (data or ""))
    while sent and file do
        local piece = file:read(PIECE)
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

-- The status and the headers of the answer, their names in small letters.
local function read_head(sock)
    while true do
        local line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
        local version, status = line:match("^HTTP/(1%.[01]) (%d%d%d)")
        if not version then
            return nil, "that is not HTTP"
        end
        local headers = {}
        while true do
            line, why = sock:receive("*l")
            if not line then
                return nil, why
            elseif line == "" then
                break
            end
            local name, value = line:match("^([^:%s]+)%s*:%s*(.-)%s*$")
            if name then
                headers[name:lower()] = value
            end
        end
        -- What comes before the answer, as 100, is none.
        if tonumber(status) >= 200 then
            return tonumber(status), headers
        end
    end
end

-- Reads `length` bytes as they come.
local function read_length(sock, length, take)
    while length > 0 do
        local piece, why = sock:receiveany(math.min(length, PIECE))
        if not piece then
            return nil, why
        end
        length = length - #piece
        if take(piece) == false then
            return true
        end
    end
    return true
end

local function read_chunks(sock, take)
    while true do
        local line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
        local size = tonumber(line:match("^%s*(%x+)") or "", 16)
        if not size then
            return nil, "a chunk without a size"
        elseif size == 0 then
            return true
        end
        local ok
        ok, why = read_length(sock, size, take)
        if not ok then
            return nil, why
        end
        line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
    end
end

local function read_to_end(sock, take)
    while true do
        local piece, why = sock:receiveany(PIECE)
        if not piece then
            if why == "closed" then
                return true, "closed"
            end
            return nil, why
        end
        if take(piece) == false then
            return true
        end
    end
end

-- Reads the body, each piece as it comes, to `take`, which returns false when it has had enough. Returns true, with "closed" where
-- nothing but the end of the connection says that this is all; or nil and why it is not complete.
local function read_body(sock, headers, take)
    local coding = headers["transfer-encoding"]
    if coding and coding:lower():find("chunked", 1, true) then
        return read_chunks(sock, take)
    elseif headers["content-length"] then
        return read_length(sock, tonumber(headers["content-length"]) or 0, take)
    end
    return read_to_end(sock, take)
end

-- What a server answered instead of a stream, as an error.
local function refusal_of(sock, status, headers, name)
    local pieces, size = {}, 0
    read_body(sock, headers, function(piece)
        pieces[#pieces + 1] = piece
        size = size + #piece
        return size < LONGEST_ERROR
    end)
    local text = table.concat(pieces)
    local said = cjson.decode(text)
    local refusal = { status = status, code = "upstream_error" }
    if type(said) == "table" and type(said.error) == "table" and type(said.error.message) == "string" then
        -- Its own words, in the shape of the API that was asked.
        refusal.message = said.error.message
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

-- Sends the request and reads the head of the answer, into `server`. Returns nil, or the error.
local function ask(server, request, model)
    local sock = server.sock
    local broken
    -- Aside: a server may answer before it has read everything, and read no further.
    server.sender = ngx.thread.spawn(function()
        local sent, why = send(sock, request, model)
        broken = not sent and why or nil
    end)
    local status, headers = read_head(sock)
    if not status then
        local reason = broken or headers
        return failure("upstream_failed", string.format("The server of %s did not answer: %s.", server.name, reason))
    end
    if status ~= 200 then
        return refusal_of(sock, status, headers, server.name)
    end
    server.headers = headers
    return nil
end

local function close(server)
    -- One that still sends keeps the connection from being closed; before, nothing could be read any more.
    ngx.thread.kill(server.sender)
    server.sock:close()
end

-- Sends the request to the server of its model and reads the head of a good answer. Returns what `stream` takes, or nil and the
-- error: status, code, message, perhaps body (the JSON text as the server gave it).
function upstream.ask(request)
    local model = gate.model(request.model)
    local name = request.name or request.model
    if not model then
        return nil, failure("upstream_failed", "The model " .. name .. " was removed.")
    end
    local sock = ngx.socket.tcp()
    sock:settimeouts(CONNECT_SECONDS * 1000, SEND_SECONDS * 1000, READ_SECONDS * 1000)
    local ok, why = sock:connect(model.host, model.port)
    if ok and model.tls == true then
        ok, why = sock:sslhandshake(nil, nil, false)
    end
    if not ok then
        return nil, failure("upstream_unreachable", string.format("The server of %s can't be reached: %s.", name, why))
    end
    local server = { sock = sock, name = name }
    local refusal = ask(server, request, model)
    if refusal then
        close(server)
        return nil, refusal
    end
    return server
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
        local complete, how = read_body(server.sock, server.headers, stream.take)
        if complete and how == "closed" and not ends_with(stream.last, ends) then
            return nil, "closed"
        elseif complete then
            stream.flush()
        end
        return complete, how
    end
    local pieces = {}
    local complete, how = read_body(server.sock, server.headers, function(piece)
        pieces[#pieces + 1] = piece
    end)
    if complete then
        give(as_event(table.concat(pieces)))
    end
    return complete, how
end

-- Gives the events of a server's answer to `give`, as they come. `ends`: how the last event of a complete stream may
-- begin. Returns nil when it was complete, or the error.
function upstream.stream(server, ends, give)
    local complete, how = read_answer(server, ends, give)
    close(server)
    if complete then
        return nil
    end
    local reason = how == "timeout" and "no more came" or how
    return failure("upstream_failed", string.format("The server of %s broke off its answer: %s.", server.name, reason))
end

return upstream
