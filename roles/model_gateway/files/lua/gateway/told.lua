-- SPDX-License-Identifier: MIT
-- A stream whose request has to wait is told so: it gets its headers at once, then lines about its wait, then what its server
-- answers. After the first byte no status can be set: a failure is an event of the stream, in the shape of its API.
local cjson = require "cjson.safe"
local config = require "gateway.config"
local errors = require "gateway.errors"
local gate = require "gateway.gate"
local hold = require "gateway.hold"
local link = require "gateway.link"
local servers = require "gateway.servers"
local upstream = require "gateway.upstream"
local words = require "gateway.words"

local told = {}

-- The paths that answer `"stream": true` with server-sent events, and the lines one of which ends a complete stream.
local DONE = { "data: [DONE]" }
local APIS = {
    ["/v1/chat/completions"] = { name = "chat", ends = DONE },
    ["/v1/completions"] = { name = "completions", ends = DONE },
    ["/v1/responses"] = {
        name = "responses",
        ends = { "event: response.completed", "event: response.incomplete", "event: response.failed" },
    },
    ["/v1/messages"] = { name = "messages", ends = { "event: message_stop" } },
    ["/v1/audio/transcriptions"] = { name = "audio", ends = DONE },
    ["/v1/audio/translations"] = { name = "audio", ends = DONE },
}

-- A refusal at once still gets its status: so long is waited for the manager's first word.
local FIRST_WORD_SECONDS = 0.25
-- A connection on which nothing moves is closed by many a proxy.
local HEARTBEAT_SECONDS = 15
-- How often a waiter looks whether there is something new, and how many of a worker's may look in a second.
local LOOK_SECONDS = 2
local LOOKS_PER_SECOND = 200

local function from_open_webui()
    local var = ngx.var
    return var.http_x_openwebui_chat or var.http_x_openwebui_task or var.http_x_openwebui_chat_id
        or var.http_x_openwebui_user_id
end

-- Whether streams of this path go to a client of HTTP/1.0: they end where the connection ends, and only here it can be said that one
-- was cut.
function told.unframed(path)
    return ngx.req.http_version() < 1.1 and APIS[path] ~= nil
end

-- Whether a request that waits is told so. Another gateway that sends it tells its client itself.
function told.wanted(request)
    return request.stream
        and config.settings.status_chunks ~= "off"
        and APIS[request.path] ~= nil
        and not ngx.var.http_x_gateway_hop
end

-- "webui" where Open WebUI's own events are understood, "pings" where an SDK takes nothing but them, else "comments".
local function manner(request, api)
    local mode = config.settings.status_chunks
    if api.name == "messages" then
        return "pings"
    elseif api.name == "chat" and (mode == "webui" or mode == "auto" and from_open_webui()) then
        return "webui"
    end
    return "comments"
end

-- Sends it on. Ends the request if its client takes nothing any more.
local function say(stream, text)
    stream.said_at = ngx.now()
    ngx.print(text)
    local ok = ngx.flush(true)
    if not ok then
        return ngx.exit(ngx.ERROR)
    end
end

-- A comment is one line, whatever the client has called its model.
local function comment(text)
    return ": " .. text:gsub("%c", " ") .. "\n\n"
end

-- A chunk of the API as any other, in which Open WebUI finds an event of its own. By hand: an empty list is none of cjson's.
local function status_chunk(stream, data)
    return string.format(
        'data: {"id":"%s","object":"chat.completion.chunk","created":%d,"model":%s,"choices":[],'
            .. '"event":{"type":"status","data":%s}}\n\n',
        stream.id,
        stream.waiter.began,
        cjson.encode(stream.waiter.name),
        cjson.encode(data)
    )
end

local PING = 'event: ping\ndata: {"type": "ping"}\n\n'

local function tell(stream, text)
    if stream.manner == "webui" then
        say(stream, status_chunk(stream, { description = text, done = false }))
    elseif stream.manner == "pings" then
        say(stream, comment(text) .. PING)
    else
        say(stream, comment(text))
    end
end

local function heartbeat(stream)
    say(stream, stream.manner == "pings" and PING or comment("still waiting"))
end

-- Ends what was told: Open WebUI takes its line away.
local function end_telling(stream)
    local text = words.waited(stream.waiter.name, stream.waiter.waited)
    if stream.manner == "webui" then
        return status_chunk(stream, { description = text, done = true, hidden = true })
    end
    return comment(text)
end

-- The event of an error, from the error's JSON text in the shape of the API; nil where no stream of this path has events.
function told.failure(path, refusal)
    local api = APIS[path]
    if not api then
        return nil
    end
    local body = refusal.body or errors.body(path, refusal)
    if api.name == "messages" then
        return "event: error\ndata: " .. body .. "\n\n"
    elseif api.name == "responses" then
        -- Its clients read either the event's own keys or those of `error`.
        local decoded = cjson.decode(body)
        local inner = type(decoded) == "table" and decoded.error or {}
        local event = {
            type = "error",
            sequence_number = 0,
            code = tostring(inner.code or refusal.code),
            message = inner.message or refusal.message,
            param = cjson.null,
            error = inner,
        }
        return "event: error\ndata: " .. cjson.encode(event) .. "\n\n"
    end
    return "data: " .. body .. "\n\n"
end

-- Asks the server, unless that was done, and passes its answer on. Returns the error, or nil.
local function answer(stream, server)
    local began = ngx.now()
    local refusal
    if not server then
        server, refusal = upstream.ask(stream.request)
    end
    if server then
        refusal = upstream.stream(server, stream.api.ends, function(text)
            say(stream, text)
        end)
    end
    ngx.var.gateway_told_seconds = string.format("%.3f", ngx.now() - began)
    return refusal
end

local function finish(stream, refusal)
    if refusal then
        ngx.var.gateway_error = refusal.code
        say(stream, told.failure(stream.request.path, refusal))
    end
    ngx.eof()
    return ngx.exit(ngx.HTTP_OK)
end

local function begin(request, waiter)
    local api = APIS[request.path]
    local stream = {
        request = request,
        waiter = waiter,
        api = api,
        manner = manner(request, api),
        said_at = 0,
    }
    ngx.status = ngx.HTTP_OK
    ngx.header.content_type = "text/event-stream; charset=utf-8"
    ngx.header.cache_control = "no-cache"
    -- For proxies between here and the client.
    ngx.header["X-Accel-Buffering"] = "no"
    if waiter then
        stream.id = "wait-" .. link.worker .. "-" .. waiter.id
        -- Which is not known yet: the stream says it.
        ngx.var.gateway_waited = "later"
        ngx.var.gateway_place = waiter.place or ""
    end
    ngx.send_headers()
    return stream
end

local function text_now(waiter)
    local place, eta = link.place(waiter)
    if not place then
        local model = gate.model(waiter.model)
        eta = model and type(model.eta_seconds) == "number" and model.eta_seconds or nil
    end
    return words.waiting(waiter.name, place, eta)
end

-- Tells of the wait until it is over. Returns the error, or nil: the count is taken.
local function keep_telling(stream)
    local waiter = stream.waiter
    local look = 0.5
    local how, refusal, last_text
    while not how do
        local text = text_now(waiter)
        if text ~= last_text then
            last_text = text
            tell(stream, text)
        elseif ngx.now() - stream.said_at >= HEARTBEAT_SECONDS then
            heartbeat(stream)
        end
        local crowd = link.waiting() / LOOKS_PER_SECOND
        local to_heartbeat = stream.said_at + HEARTBEAT_SECONDS - ngx.now()
        how, refusal = hold.await(waiter, math.min(math.max(look, crowd), math.max(to_heartbeat, 0.01)))
        look = LOOK_SECONDS
    end
    say(stream, end_telling(stream))
    return refusal
end

-- Answers after the wait, by another server where one fails. Returns the error, and whether it waits again.
local function answer_by_any(stream)
    while true do
        local refusal = answer(stream)
        local how = refusal and refusal.again and servers.again(stream.request)
        if how == "wait" then
            stream.waiter, refusal = hold.begin(stream.request)
            if stream.waiter then
                link.enrol(stream.waiter)
            end
            return refusal, stream.waiter ~= nil
        elseif how ~= "ask" then
            return refusal
        end
    end
end

-- Waits as `hold.wait` does and answers as it goes. Returns only if nothing was answered yet: true, or nil and the error.
function told.wait(request, waiter)
    local until_then = waiter.began + FIRST_WORD_SECONDS
    local how, refusal
    repeat
        how, refusal = hold.await(waiter, until_then - ngx.now())
        if how == "entered" then
            return true
        elseif how then
            return nil, refusal
        end
    until waiter.n or ngx.now() >= until_then
    waiter.eager = nil

    local stream = begin(request, waiter)
    local waits
    repeat
        refusal = keep_telling(stream)
        if not refusal then
            refusal, waits = answer_by_any(stream)
        else
            waits = false
        end
    until not waits
    return finish(stream, refusal)
end

-- Answers a stream whose count has been taken, and that did not wait: for clients whose answers have no frame (HTTP/1.0), as by that
-- alone an answer that was broken off looks complete. `server`: it was asked already.
function told.stream(request, server)
    local refusal
    if not server then
        server, refusal = upstream.ask(request)
    end
    if not server then
        return errors.answer(refusal)
    end
    if server.is_gateway then
        ngx.header["X-Gateway-Server"] = ngx.var.gateway_server
    end
    local stream = begin(request)
    return finish(stream, answer(stream, server))
end

return told
