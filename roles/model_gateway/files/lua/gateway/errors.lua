-- SPDX-License-Identifier: MIT
-- What a client is told when it gets no answer of a model: in OpenAI's shape, on /v1/messages in Anthropic's.
-- An error is a table: status, code (a word for programs), message, and by choice retry_after (seconds), should_retry (false:
-- the clients' libraries shall not try again by themselves), allow (the methods of a path), param, body (the JSON text itself).
local cjson = require "cjson.safe"

local M = {}

local OPENAI = {
    [401] = "authentication_error",
    [403] = "permission_error",
    [404] = "not_found_error",
    [429] = "rate_limit_error",
}
local ANTHROPIC = {
    [401] = "authentication_error",
    [403] = "permission_error",
    [404] = "not_found_error",
    [413] = "request_too_large",
    [429] = "rate_limit_error",
    [503] = "overloaded_error",
    [504] = "timeout_error",
}
-- What nginx refuses by itself. 495 to 497 are its own numbers.
local PAGES = {
    [400] = { "bad_request", "This is no request that HTTP knows." },
    [403] = { "forbidden", "This is not allowed." },
    [404] = { "not_found", "There is no such path here." },
    [405] = { "method_not_allowed", "This path does not take this method." },
    [408] = { "request_timeout", "The request did not come in time." },
    [413] = { "request_too_large", "The request's body is larger than this gateway takes." },
    [414] = { "uri_too_long", "The request's URI is too long." },
    [415] = { "unsupported_media_type", "The request's body has an encoding that is not supported." },
    [431] = { "headers_too_large", "The request's headers are too large." },
    [500] = { "gateway_error", "The gateway has failed on this request; its error log tells why." },
    [501] = { "not_implemented", "The request has a transfer encoding that is not supported." },
    [502] = { "server_failed", "The model's server ended the connection before it had answered." },
    [503] = { "unavailable", "The gateway cannot take this request now." },
    [504] = { "server_timeout", "The model's server did not answer in time." },
    [505] = { "version_not_supported", "The request has a version of HTTP that is not supported." },
}
-- Clients' libraries wait for as long as Retry-After says, past their own timeout, or give up at once where it is long.
local LONGEST_RETRY_SECONDS = 60
local BECOMES = { [495] = 400, [496] = 400, [497] = 400 }

local function anthropic(path)
    return path and (path:find("/v1/messages", 1, true) or path:find("/v1//messages", 1, true)) ~= nil
end

-- The JSON text of an error, in the shape that clients of this path expect.
function M.body(path, err)
    local status = err.status
    if anthropic(path) then
        local kind = ANTHROPIC[status] or (status >= 500 and "api_error" or "invalid_request_error")
        return cjson.encode({ type = "error", error = { type = kind, message = err.message, code = err.code } })
    end
    local kind = OPENAI[status] or (status >= 500 and "server_error" or "invalid_request_error")
    local param = err.param or cjson.null
    return cjson.encode({ error = { message = err.message, type = kind, param = param, code = err.code } })
end

-- Answer with an error, and end the request.
function M.answer(err)
    local status = err.status
    local headers = ngx.header
    ngx.status = status
    headers["Content-Type"] = "application/json"
    if err.retry_after then
        headers["Retry-After"] = math.min(math.max(1, math.ceil(err.retry_after)), LONGEST_RETRY_SECONDS)
    end
    if err.should_retry == false then
        headers["x-should-retry"] = "false"
    end
    if status == 401 then
        headers["WWW-Authenticate"] = "Bearer"
    end
    if err.allow then
        headers["Allow"] = err.allow
    end
    ngx.var.gateway_error = err.code
    local text = (err.body or M.body(ngx.var.request_uri, err)) .. "\n"
    -- A server that spoke no HTTP makes nginx answer in HTTP/0.9, whose end is that of the connection.
    if ngx.req.http_version() ~= 0.9 then
        headers["Content-Length"] = #text
    end
    ngx.print(text)
    return ngx.exit(200) -- the whole request; the status is that of above
end

-- The page of an error of nginx's own: what it could not read, and servers that end or hang.
function M.page()
    -- The log is to have the path that was asked for. What is none stays out.
    if not pcall(ngx.req.set_uri, (ngx.var.request_uri or ""):match("^[^?]*")) then
        ngx.req.set_uri("/")
    end
    local status = ngx.status
    status = BECOMES[status] or status
    local page = PAGES[status] or PAGES[status >= 500 and 500 or 400]
    local message = page[2]
    local model = ngx.var.gateway_model
    if (status == 502 or status == 504) and model and model ~= "" then
        message = message:gsub("The model's server", function()
            return "The server of " .. model
        end)
    end
    return M.answer({ status = status, code = page[1], message = message })
end

return M
