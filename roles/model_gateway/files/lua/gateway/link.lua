-- SPDX-License-Identifier: MIT
-- This worker's link to the manager: JSON lines over one TCP connection, which is made anew when it is lost.
-- The table of those who wait is the truth: each new connection begins with it. A waiter is a table with the keys
-- model, key, task, began and sem (hold.lua); here it gets id, n, go and refusal.
local semaphore = require "ngx.semaphore"
local cjson = require "cjson.safe"
local config = require "gateway.config"
local gate = require "gateway.gate"
local limits = require "gateway.limits"
local servers = require "gateway.servers"
local spool = require "gateway.spool"

local link = {}

local CONNECT_SECONDS = 1
local SEND_SECONDS = 5
-- How often a silent link looks at the clock.
local TICK_SECONDS = 1
-- The manager tells those who wait something every 2 s. After so much silence it hangs, or the connection is dead.
local SILENT_SECONDS = 15
-- A manager answers a hello with the state.
local HELLO_SECONDS = 5
local RETRY_SECONDS = 0.25
-- An old worker whose count of requests never gets to 0 ends all the same.
local LINGER_SECONDS = 60

-- Refusals that an SDK's own second attempt would only meet again, or for which it would cause another switch.
local NOT_AGAIN = {
    busy_task = true,
    model_failing = true,
    model_unavailable = true,
    switch_failed = true,
    unsupported = true,
}

local waiters = {}
local waiting = 0
local last_id = 0
local requests = 0
-- What the manager told last about each model's queue, and who of each model has no place yet.
local told = {}
local placeless = {}
local up = false
local down_since = 0
local heard = 0
local exiting_since
-- The lines to be sent; nil while there is no connection.
local outgoing
local wake

local function send(message)
    if outgoing then
        outgoing[#outgoing + 1] = cjson.encode(message) .. "\n"
        wake:post()
    end
end

local function wait_message(waiter)
    return {
        t = "wait",
        id = waiter.id,
        model = waiter.model,
        key = waiter.key,
        task = waiter.task,
        waited = math.floor((ngx.now() - waiter.began) * 1000 + 0.5) / 1000,
    }
end

local function remove(waiter)
    if waiters[waiter.id] ~= waiter then
        return false
    end
    waiters[waiter.id] = nil
    waiting = waiting - 1
    return true
end

-- Enrols a waiter with the manager, also one that was let go and found the gate closed.
function link.enrol(waiter)
    if not waiter.id then
        last_id = last_id + 1
        waiter.id = last_id
    end
    waiter.go, waiter.n = nil, nil
    waiters[waiter.id] = waiter
    waiting = waiting + 1
    send(wait_message(waiter))
end

-- Takes a waiter back that has been answered, or whose client has gone, also one that was let go and has not entered.
function link.withdraw(waiter)
    if waiter.id and (remove(waiter) or waiter.go) then
        send({ t = "gone", id = waiter.id })
    end
end

-- A waiter that was let go has entered: its gate may be closed again.
function link.entered(waiter)
    send({ t = "entered", id = waiter.id })
end

-- The place in the queue and the seconds that are left, as far as they are known.
function link.place(waiter)
    local said = told[waiter.model]
    if not said or not waiter.n then
        return nil, nil
    end
    local eta = type(said.eta) == "number" and said.eta - (ngx.now() - said.at) or nil
    local place = said.ahead + (waiter.n - said.first) + 1
    return place >= 1 and place or nil, eta
end

-- For how many seconds there has been no manager; nil while there is one.
function link.down_seconds()
    return not up and ngx.now() - down_since or nil
end

-- How many wait in this worker.
function link.waiting()
    return waiting
end

-- Counts the requests of this worker: as long as it has any, it may need the link.
function link.count_requests(by)
    requests = requests + by
end

local function in_order()
    local ids = {}
    for id in pairs(waiters) do
        ids[#ids + 1] = id
    end
    table.sort(ids)
    return ids
end

local function refuse(waiter, refusal)
    remove(waiter)
    waiter.refusal = refusal
    waiter.sem:post()
end

-- What is answered while there is no manager.
function link.unavailable()
    return {
        status = 503,
        code = "manager_unavailable",
        message = "The model has to be switched to, and the model manager does not answer. Try again in a few seconds.",
        retry_after = 5,
    }
end

local function tick()
    if not up and waiting > 0 and ngx.now() - down_since >= config.settings.link_grace_seconds then
        for _i, id in ipairs(in_order()) do
            refuse(waiters[id], link.unavailable())
        end
    end
    limits.sweep()
    spool.tidy()
end

-- Whether an old worker has nothing left to ask the manager.
local function over()
    if not ngx.worker.exiting() then
        return false
    end
    exiting_since = exiting_since or ngx.now()
    return waiting == 0 and (requests <= 0 or ngx.now() - exiting_since > LINGER_SECONDS)
end

local handle = {}

function handle.state(message, line)
    gate.apply(message, line)
    up = true
end

handle["counts?"] = function(message)
    send({ t = "counts", seq = message.seq, version = gate.version(), counts = servers.tell(gate.counts()) })
end

function handle.held(message)
    local waiter = waiters[message.id]
    if waiter then
        waiter.n = message.n
        if not waiter.place then
            local those = placeless[waiter.model] or {}
            placeless[waiter.model] = those
            those[#those + 1] = waiter
        end
        -- Only one who has not begun to answer waits for this.
        if waiter.eager then
            waiter.sem:post()
        end
    end
end

function handle.go(message)
    local waiter = waiters[message.id]
    if waiter then
        remove(waiter)
        waiter.go = true
        waiter.sem:post()
    end
end

function handle.refuse(message)
    local waiter = waiters[message.id]
    if waiter then
        local should_retry
        if NOT_AGAIN[message.code] then
            should_retry = false
        end
        refuse(waiter, {
            status = tonumber(message.status) or 503,
            code = message.code,
            message = message.message,
            retry_after = tonumber(message.retry_after),
            should_retry = should_retry,
        })
    end
end

function handle.tell(message)
    local model = message.model
    told[model] = { ahead = message.ahead, first = message.first, eta = message.eta, at = ngx.now() }
    for _i, waiter in ipairs(placeless[model] or {}) do
        waiter.place = link.place(waiter)
    end
    placeless[model] = nil
end

local function write(sock, connection)
    while connection.open do
        local lines = outgoing
        if #lines > 0 then
            outgoing = {}
            local sent, why = sock:send(lines)
            if not sent then
                connection.open = false
                connection.why = why
                return
            end
        else
            wake:wait(60)
        end
    end
end

-- Reads until the connection ends. Returns why it did.
local function read(sock, connection)
    local began, partial = ngx.now(), ""
    heard = began
    while true do
        local line, why, rest = sock:receive("*l")
        local now = ngx.now()
        if line then
            heard = now
            line, partial = partial .. line, ""
            local message = cjson.decode(line)
            if type(message) ~= "table" then
                return "what it sent is not JSON"
            end
            local handler = handle[message.t]
            -- A newer manager may say more than this gateway knows.
            if handler then
                handler(message, line)
            end
        elseif why == "timeout" then
            partial = partial .. (rest or "")
        else
            return why
        end
        -- Also where the manager is never silent.
        tick()
        if waiting == 0 then
            heard = now
        end
        if not connection.open then
            return connection.why
        elseif not up and now - began > HELLO_SECONDS then
            return "no state within " .. HELLO_SECONDS .. " s: is the token right?"
        elseif now - heard > SILENT_SECONDS then
            return "silent for " .. SILENT_SECONDS .. " s"
        elseif over() then
            return "over"
        end
    end
end

-- One connection from its beginning to its end. Returns why it ended.
local function connect_once()
    local sock = ngx.socket.tcp()
    sock:settimeouts(CONNECT_SECONDS * 1000, SEND_SECONDS * 1000, TICK_SECONDS * 1000)
    local ok, why = sock:connect(config.settings.manager_host, config.settings.manager_port)
    if not ok then
        return why
    end
    outgoing = {}
    send({ t = "hello", token = config.token, worker = link.worker, protocol = 1, store = gate.store() })
    for _i, id in ipairs(in_order()) do
        local waiter = waiters[id]
        waiter.n = nil
        send(wait_message(waiter))
    end
    told, placeless = {}, {}
    local connection = { open = true }
    local writer = ngx.thread.spawn(write, sock, connection)
    local done
    done, why = pcall(read, sock, connection)
    connection.open = false
    wake:post()
    ngx.thread.wait(writer)
    sock:close()
    return done and why or "a mistake in the gateway: " .. tostring(why)
end

local function run()
    local last_why
    while true do
        -- Whatever goes wrong once, the worker has to have a link again.
        local done, why = pcall(connect_once)
        if not done then
            why = "a mistake in the gateway: " .. tostring(why)
        end
        local was_up = up
        outgoing = nil
        if up then
            up, down_since = false, ngx.now()
        end
        if why == "over" or over() then
            return
        end
        -- Once for each reason, not for each of many attempts.
        if was_up or why ~= last_why then
            ngx.log(ngx.ERR, "no link to the model manager: ", why)
            last_why = why
        end
        tick()
        ngx.sleep(RETRY_SECONDS)
    end
end

-- Begins the link of this worker; for init_worker_by_lua.
function link.start()
    wake = semaphore.new(0)
    down_since = ngx.now()
    link.worker = string.format("%d.%08x", ngx.worker.pid(), math.random(0, 0x7fffffff))
    limits.start()
    local ok, why = ngx.timer.at(0, function(premature)
        if not premature then
            run()
        end
    end)
    if not ok then
        ngx.log(ngx.ERR, "the link to the model manager could not be begun: ", why)
    end
end

return link
