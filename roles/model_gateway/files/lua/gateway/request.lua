-- SPDX-License-Identifier: MIT
-- A request's way: read and matched, counted and sent on; held where its model's gate is closed; and its end.
local balancer = require "ngx.balancer"
local address = require "gateway.address"
local body = require "gateway.body"
local config = require "gateway.config"
local errors = require "gateway.errors"
local gate = require "gateway.gate"
local hold = require "gateway.hold"
local keys = require "gateway.keys"
local link = require "gateway.link"
local list = require "gateway.list"
local raw = require "gateway.raw"
local relay = require "gateway.relay"
local routes = require "gateway.routes"
local servers = require "gateway.servers"
local spool = require "gateway.spool"
local told = require "gateway.told"

local var = ngx.var
local get_method, read_body, set_uri = ngx.req.get_method, ngx.req.read_body, ngx.req.set_uri
local posted = routes.posted
local count_requests = link.count_requests

local M = {}

local NO_PATH = { status = 404, code = "not_found", message = "There is no such path here." }
local POST_ONLY = { status = 405, code = "method_not_allowed", message = "This path takes POST alone.", allow = "POST" }
local GET_ONLY = { status = 405, code = "method_not_allowed", message = "This path takes GET alone.", allow = "GET, HEAD" }
local NO_MODEL = {
    status = 400,
    code = "model_required",
    message = "The request must name its 'model'. GET /v1/models lists all.",
    param = "model",
}

-- Whether this worker knows the models.
local started = false

-- The requests that have arrived, by their addresses: true, or what is known of one that was sent to the location where requests wait.
local arrived = {}

local function pass_on(request, location)
    arrived[address()] = request
    return ngx.exec(location)
end

local function forbidden(key, name)
    return {
        status = 403,
        code = "model_not_allowed",
        message = "The API key '" .. key.name .. "' may not use the model '" .. name .. "'.",
        param = "model",
    }
end

local function request_of(model, name, key, stream, path)
    local args = var.args
    return {
        model = model.id,
        name = name,
        key = key and key.name or "",
        max_waiting = key and key.max_waiting,
        stream = stream,
        path = path,
        uri = args and args ~= "" and path .. "?" .. args or path,
        task = var.http_x_openwebui_task or "",
        began = ngx.now(),
    }
end

-- The model that a request is for, by the name in its body and the one in its path, if it has one there.
local function model_for(name, fixed, key)
    local model = gate.find(fixed or name)
    if not model then
        return nil, gate.fresh() and list.no_such_model(fixed or name, key) or gate.STARTING
    end
    if not keys.allows(key, model.id) then
        return nil, forbidden(key, model.id)
    end
    if fixed and name and gate.find(name) ~= model then
        return nil, list.no_such_model(name, key)
    end
    return model
end

-- Where the gate is open and the server is plain HTTP, nothing more is to be done.
local function go_on(model, name, key, stream, path, as_written, unnamed)
    var.gateway_model = model.id
    if not as_written then
        set_uri(path)
    end
    local entered, why = gate.enter(model.id)
    if why == "unknown" then
        return errors.answer(list.no_such_model(name, key))
    end
    if entered then
        model = gate.model(model.id)
        if model.api_key then
            var.gateway_authorization = "Bearer " .. model.api_key
        end
        if not model.servers and not (stream and told.unframed(path)) then
            return model.tls and ngx.exec("@tls") or nil
        end
    end
    local request = request_of(model, name, key, stream, path)
    request.entered = entered
    request.unnamed = unnamed
    return pass_on(request, "@held")
end

-- Why a long body is not even read: the disk is full enough, or it is known by now that its request can't be taken.
local function refused_unread(fixed, key)
    local model, err
    if fixed then
        model, err = model_for(nil, fixed, key)
    end
    return err or hold.full(model, key) or spool.admit()
end

-- `as_written`: the client has written the path as it is sent on.
local function post(path, fixed, as_written)
    if get_method() ~= "POST" then
        return errors.answer(POST_ONLY)
    end
    local key, err = keys.check()
    err = err or keys.admit(key)
    -- Before the body is read, which would have to be kept.
    if not started and not err then
        started = gate.await_state()
        err = not started and gate.STARTING or nil
    end
    local long = not err and spool.needed()
    if long then
        err = refused_unread(fixed, key)
    end
    if err then
        return errors.answer(err)
    end
    read_body()
    if long then
        spool.settle()
    end
    local name, stream
    name, stream, err = body.look()
    if not err and not name and not fixed then
        err = NO_MODEL
    end
    if err then
        return errors.answer(err)
    end
    local model
    model, err = model_for(name, fixed, key)
    if not model then
        return errors.answer(err)
    end
    return go_on(model, name or fixed, key, stream, path, as_written, not name)
end

-- Rewrite phase: the request is read and matched, and enters if it can.
function M.rewrite()
    count_requests(1)
    arrived[address()] = true
    local path = posted[raw.text("request_uri")]
    if path then
        return post(path, nil, true)
    end
    local route = routes.of(var.uri)
    if not route then
        return errors.answer(NO_PATH)
    end
    if route.path then
        return post(route.path, route.fixed)
    end
    local method = get_method()
    if method ~= "GET" and method ~= "HEAD" then
        return errors.answer(GET_ONLY)
    end
    local key, err = keys.check()
    if err then
        return errors.answer(err)
    end
    return list.answer(route, key)
end

-- Access phase of the location where requests wait. In a handler of its own: a client that leaves while its request is held goes
-- unnoticed by the handler that has read the body.
function M.access()
    local request = arrived[address()]
    if type(request) ~= "table" then
        return ngx.exit(500)
    end
    local model = gate.model(request.model)
    if model and model.servers then
        return relay.answer(request)
    elseif request.entered then
        return told.stream(request)
    end
    local ok, err = hold.wait(request)
    if not ok then
        return errors.answer(err)
    end
    model = gate.model(request.model)
    if model.api_key then
        var.gateway_authorization = "Bearer " .. model.api_key
    end
    if request.stream and told.unframed(request.path) then
        return told.stream(request)
    end
    if model.tls then
        return ngx.exec("@tls")
    end
end

-- Which server a request is sent to.
function M.balance()
    local model = gate.model(gate.counted())
    local ok, why
    if model then
        ok, why = balancer.set_current_peer(model.host, model.port)
    end
    if not ok then
        ngx.log(ngx.ERR, "no server for a request: ", why or "its model is gone")
        return ngx.exit(502)
    end
end

-- Log phase, at the end of every request, however it ends.
function M.log()
    local this = address()
    local request = arrived[this]
    if request == true then
        count_requests(-1)
    elseif request then
        hold.ended()
        servers.leave()
    end
    arrived[this] = nil
    gate.leave()
    if config.guarded then
        keys.leave()
    end
    spool.leave()
end

return M
