-- SPDX-License-Identifier: MIT
-- A request waits until its model's gate is open: within the limits, until the longest wait is over, as long as its client
-- is there. Its place is a lease: it ends with the request, however that ends.
local semaphore = require "ngx.semaphore"
local config = require "gateway.config"
local gate = require "gateway.gate"
local keys = require "gateway.keys"
local limits = require "gateway.limits"
local link = require "gateway.link"
local words = require "gateway.words"

local hold = {}

local FULL = {
    { "too_many_waiting", "%d requests wait already, as many as may." },
    { "too_many_waiting_for_model", "%d requests wait already for this model, as many as may." },
    { "too_many_waiting_for_key", "%d requests of this key wait already, as many as may." },
}

-- When it may be worth trying again.
local function retry_after(model)
    local eta = model and model.eta_seconds
    return type(eta) == "number" and math.min(math.max(math.ceil(eta), 1), 300) or 10
end

local function finish(waiter, entered)
    if waiter.done then
        return
    end
    waiter.done = true
    if entered then
        link.entered(waiter)
    else
        link.withdraw(waiter)
    end
    limits.give(waiter.model, waiter.key)
    waiter.waited = ngx.now() - waiter.began
    ngx.var.gateway_waited = string.format("%.3f", waiter.waited)
    ngx.var.gateway_place = waiter.place or ""
end

local function timed_out(waiter)
    local place, eta = link.place(waiter)
    local model = gate.model(waiter.model)
    local reason = model and model.state and "it is still " .. model.state or "it could not be switched to"
    return {
        status = 504,
        code = "wait_timeout",
        message = string.format(
            "Waited %d s for %s, the longest that may be waited: %s%s.",
            config.settings.max_wait_seconds,
            waiter.name,
            reason,
            place and ", and this request is at " .. words.place(place, eta) or ""
        ),
        retry_after = retry_after(model),
        -- An SDK's own second attempt would wait as long again.
        should_retry = false,
    }
end

-- Waits for what comes next, for `seconds` at most. Returns "entered" (the count is taken, the gate was seen open); "refused" and
-- the error; or nil: nothing yet. The wait is over with either of the first two.
function hold.await(waiter, seconds)
    local left = waiter.deadline - ngx.now()
    if left > 0 then
        waiter.sem:wait(math.max(0.001, math.min(seconds or left, left)))
    end
    if waiter.go then
        local entered, why = gate.enter(waiter.model)
        if entered then
            finish(waiter, true)
            return "entered"
        end
        if why == "closed" then
            link.enrol(waiter)
            return nil
        end
        waiter.refusal = waiter.refusal or {
            status = 503,
            code = "model_removed",
            message = "The model was removed while this request waited for it.",
        }
    end
    if not waiter.refusal and ngx.now() >= waiter.deadline then
        waiter.refusal = timed_out(waiter)
    end
    if waiter.refusal then
        finish(waiter)
        return "refused", waiter.refusal
    end
    return nil
end

local function most_of(max_waiting)
    local settings = config.settings
    return { settings.max_waiting, settings.max_waiting_per_model, max_waiting or settings.max_waiting_per_key }
end

local function too_many(model, which, most)
    return {
        status = 429,
        code = FULL[which][1],
        message = string.format(FULL[which][2], most[which]),
        retry_after = retry_after(model),
    }
end

-- Whether this model, or without one any that the key may use, lets requests in. A key without limits of models is nil.
local function any_open(model, key)
    for _i, one in ipairs(model and { model } or gate.models()) do
        if one.gate == "open" and keys.allows(key, one.id) then
            return true
        end
    end
    return false
end

-- Why a request would not be let wait, as far as that is known before its body is read: of this model, or, without one, whichever its
-- model is. Nil: it would, or it need not, or nobody knows.
function hold.full(model, key)
    gate.fresh()
    local most = most_of(key and key.max_waiting)
    local which = limits.full(model and model.id, key and key.name or "", most)
    if not which or any_open(model, key) then
        return nil
    end
    return too_many(model, which, most)
end

-- Begins a wait, within the limits. Returns the waiter, or nil and the error.
function hold.begin(request)
    local down = link.down_seconds()
    if down and down >= config.settings.link_grace_seconds then
        return nil, link.unavailable()
    end
    local most = most_of(request.max_waiting)
    local key = request.key or ""
    local ok, which = limits.take(request.model, key, most)
    if not ok then
        return nil, too_many(gate.model(request.model), which, most)
    end
    local now = ngx.now()
    local waiter = {
        model = request.model,
        name = request.name or request.model,
        key = key,
        -- A header may be no UTF-8, which the manager takes for garbage: it would end the link, and each one that follows.
        task = (request.task or ""):sub(1, 100):gsub("[^\32-\126]", "?"),
        began = now,
        -- It may have been sent before, in vain.
        deadline = (request.began or now) + config.settings.max_wait_seconds,
        sem = semaphore.new(0),
    }
    -- From here on `ended` gives it back.
    ngx.ctx.gateway_waiter = waiter
    return waiter
end

-- Waits for the gate of the request's model. Returns true when the count has been taken and the gate was seen open, or nil and
-- the error: status, code, message, retry_after, should_retry. A stream that is told of its wait is answered here, and this does
-- not return.
function hold.wait(request)
    local waiter, why = hold.begin(request)
    if not waiter then
        return nil, why
    end
    -- At its end this requires `hold`.
    local told = require "gateway.told"
    if told.wanted(request) then
        waiter.eager = true
        link.enrol(waiter)
        return told.wait(request, waiter)
    end
    link.enrol(waiter)
    while true do
        local how, refusal = hold.await(waiter)
        if how == "entered" then
            return true
        elseif how == "refused" then
            return nil, refusal
        end
    end
end

-- A request that was sent to the location where requests wait has ended, in whatever way; in the log phase. A waiter that is still
-- one has lost its client.
function hold.ended()
    link.count_requests(-1)
    local waiter = ngx.ctx.gateway_waiter
    if waiter then
        finish(waiter)
    end
end

return hold
