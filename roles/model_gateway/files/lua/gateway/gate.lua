-- SPDX-License-Identifier: MIT
-- The models, their gates, and how many requests each has: in a shared dict, so that all workers have the same, and whoever
-- asks nobody still sees a gate that was closed a moment ago.
--
-- Keys of the dict: state (the generation, a newline, the manager's line), generation, version, and by model gate:ID (the
-- generation; negative: closed) and idle:ID (when a request ended last). A worker counts in its own slot, slot:N, which names
-- its process: count:N:ID. So the counts of a worker that was killed are known as such.
local cjson = require "cjson.safe"
local address = require "gateway.address"
local config = require "gateway.config"
local process = require "gateway.process"

local M = {}

M.STARTING = { status = 503, code = "starting", message = "The gateway has not heard of any model yet.", retry_after = 1 }

local dict = ngx.shared.gateway
local slot, ledger

-- What this worker knows of the state: a generation of it, decoded.
local known = { generation = 0, version = nil, list = {}, by_id = {}, by_name = {} }
-- The model of each request that is counted, by the request's address.
local counted = {}
-- The names of a model's keys in the dict, so that no request puts them together.
local key_names = {}

-- ---- which workers live ---------------------------------------------------------------------

-- Give this worker its slot: once, when it begins.
function M.register()
    local pid = ngx.worker.pid()
    ledger = process.identity(pid)
    if not ledger then
        error("/proc/" .. pid .. "/stat cannot be read: without it nobody knows which workers live", 0)
    end
    slot = assert(dict:incr("slots", 1, 0))
    assert(dict:set("slot:" .. slot, ledger))
    dict:add("began", ngx.now())
end

-- Forget what a worker has counted that is no more. Its requests ended with it.
local function bury(number)
    dict:set("slot:" .. number, false)
    for _, model in ipairs(known.list) do
        local name = "count:" .. number .. ":" .. model.id
        if (dict:get(name) or 0) > 0 then
            dict:set("idle:" .. model.id, ngx.now())
        end
        dict:delete(name)
    end
    for _, key in pairs(config.keys) do
        dict:delete("key:" .. number .. ":" .. key.name)
    end
end

-- A random text that all who share this dict have alike, and nobody else.
function M.store()
    local text = dict:get("store")
    if not text then
        local random = assert(io.open("/dev/urandom", "rb"))
        dict:add("store", (random:read(8):gsub(".", function(byte)
            return ("%02x"):format(byte:byte())
        end)))
        random:close()
        text = dict:get("store")
    end
    return text
end

-- The slots of workers that live, without those before the first one that may.
local function living()
    local first, last = dict:get("first_slot") or 1, dict:get("slots") or 0
    local slots, leading = {}, true
    for number = first, last do
        local whose = dict:get("slot:" .. number)
        if whose and (number == slot or not process.ended(whose)) then
            slots[#slots + 1] = number
        elseif whose then
            bury(number)
            whose = false
        end
        leading = leading and whose == false
        if leading then
            dict:set("first_slot", number + 1)
            dict:delete("slot:" .. number)
        end
    end
    return slots
end

-- The sum of a number that each worker counts by itself, in keys PREFIX:SLOT:NAME.
function M.sum(prefix, name)
    local total = 0
    for _, number in ipairs(living()) do
        total = total + (dict:get(prefix .. ":" .. number .. ":" .. name) or 0)
    end
    return total
end

-- Add to a number of this worker's own.
function M.add(prefix, name, change)
    dict:incr(prefix .. ":" .. slot .. ":" .. name, change, 0)
end

-- ---- the state ------------------------------------------------------------------------------

local function plain(value)
    if value == cjson.null then
        return nil
    end
    return value
end

local function adopt(generation, message)
    local list, by_id, by_name = {}, {}, {}
    for number, model in ipairs(message.models) do
        for name, value in pairs(model) do
            model[name] = plain(value)
        end
        list[number] = model
        by_id[model.id] = model
        by_name[model.id] = model
    end
    -- An id comes before another model's name, and a name before an adapter's.
    for _, which in ipairs({ "names", "adapters" }) do
        for _, model in ipairs(list) do
            for _, name in ipairs(model[which] or {}) do
                by_name[name] = by_name[name] or model
            end
        end
    end
    known = { generation = generation, version = message.version, list = list, by_id = by_id, by_name = by_name }
end

local function refresh()
    local text = dict:get("state")
    local cut = text and text:find("\n", 1, true)
    if not cut then
        return
    end
    local generation = tonumber(text:sub(1, cut - 1))
    if generation ~= known.generation then
        adopt(generation, cjson.decode(text:sub(cut + 1)))
    end
end

-- The generation of the state, after this worker has taken it over; nil: there is none yet.
function M.fresh()
    local generation = dict:get("generation")
    if generation ~= known.generation then
        refresh()
    end
    return generation
end

-- Whether there is a state, or comes within link_grace_seconds: after a start, the manager is about to tell it.
function M.await_state()
    for _step = 1, config.settings.link_grace_seconds * 10 do
        if M.fresh() then
            return true
        end
        ngx.sleep(0.1)
    end
    return M.fresh() ~= nil
end

-- The model that has this name: an id, another name, or an adapter of it.
function M.find(name)
    local model = known.by_name[name]
    if not model and M.fresh() then
        model = known.by_name[name]
    end
    return model
end

-- The model of this id as the manager has told it, or nil.
function M.model(id)
    return known.by_id[id]
end

-- All models, in the manager's order.
function M.models()
    return known.list
end

-- All names by which a model is found, each with its model.
function M.names()
    return known.by_name
end

-- The version of the state that all workers have, [boot, n], or nil.
function M.version()
    local text = dict:get("version")
    return text and cjson.decode(text)
end

local function newer(version, than)
    if not than or version[1] ~= than[1] then
        return not than or version[1] > than[1]
    end
    return version[2] > than[2]
end

local function names_of(id)
    local names = key_names[id]
    if not names then
        names = { count = "count:" .. slot .. ":" .. id, gate = "gate:" .. id, idle = "idle:" .. id }
        key_names[id] = names
    end
    return names
end

-- Write a state into the dict. `version` comes last: whoever is killed in between has done nothing, and the next does it again.
local function write(message, line)
    if not newer(message.version, M.version()) then
        -- Another worker has written it.
        refresh()
        return false
    end
    refresh()
    local before = known.list
    local generation = math.max(dict:get("generation") or 0, known.generation) + 1
    assert(dict:set("state", generation .. "\n" .. line))
    adopt(generation, message)
    for _, model in ipairs(known.list) do
        assert(dict:set(names_of(model.id).gate, model.gate == "open" and generation or -generation))
    end
    for _, model in ipairs(before) do
        if not known.by_id[model.id] then
            dict:delete(names_of(model.id).gate)
            key_names[model.id] = nil
        end
    end
    assert(dict:set("generation", generation))
    assert(dict:set("version", cjson.encode(message.version)))
    return true
end

-- One worker at a time writes. A lock whose holder was killed is taken from it.
local function locked(work, ...)
    while true do
        local ok, why = dict:add("writing", ledger)
        if ok then
            break
        elseif why ~= "exists" then
            return nil, why
        end
        local holder = dict:get("writing")
        if holder and process.ended(holder) then
            dict:delete("writing")
        else
            ngx.sleep(0.001)
        end
    end
    local ok, done = pcall(work, ...)
    dict:delete("writing")
    if not ok then
        ngx.log(ngx.ERR, "the state of the models could not be kept: ", done)
        return nil, done
    end
    return done
end

-- Take over a state of the manager, if it is newer than what is known. `line` is its text as it came. May wait for another
-- worker. Returns whether it was newer; nil and why, if it could not be kept.
function M.apply(message, line)
    return locked(write, message, line)
end

-- ---- requests -------------------------------------------------------------------------------

-- Count a request of the model, if its gate is open. It is counted first, and then the gate is looked at: whoever closes the gate
-- and then reads the counts misses nobody. Returns true, or nil and "closed" or "unknown".
function M.enter(id)
    local names = names_of(id)
    dict:incr(names.count, 1, 0)
    local open = dict:get(names.gate)
    if open and open > 0 then
        if open ~= known.generation then
            refresh()
        end
        if known.by_id[id] then
            counted[address()] = id
            return true
        end
        open = nil
    end
    dict:incr(names.count, -1, 0)
    return nil, open and "closed" or "unknown"
end

-- The model for which this request is counted, or nil.
function M.counted()
    return counted[address()]
end

-- End what enter has begun for this request, if it has; at the latest in the log phase. A model is idle since the last of its requests
-- ended, which is the last one of some worker.
function M.leave()
    local this = address()
    local id = counted[this]
    if id then
        counted[this] = nil
        local names = names_of(id)
        if (dict:incr(names.count, -1, 0) or 0) <= 0 then
            dict:set(names.idle, ngx.now())
        end
    end
end

-- How many requests each model has, of all workers that live, and for how long it has had none.
function M.counts()
    M.fresh()
    local slots, now = living(), ngx.now()
    local counts = {}
    for _, model in ipairs(known.list) do
        local total = 0
        for _, number in ipairs(slots) do
            -- A number below 0 would end the link, each time that it is told.
            total = total + math.max(0, dict:get("count:" .. number .. ":" .. model.id) or 0)
        end
        local since = dict:get(names_of(model.id).idle) or dict:get("began") or now
        counts[model.id] = { in_flight = total, idle_seconds = total > 0 and 0 or math.max(0, now - since) }
    end
    return counts
end

return M
