-- SPDX-License-Identifier: MIT
-- How many requests wait: in all, for each model, for each key, over all workers. Beside each count, a worker keeps its own
-- share of it, so that what a killed worker has left behind can be taken back.
local process = require "gateway.process"

local limits = {}

local dict = ngx.shared.gateway_waiting
-- Workers are numbered as they start; the numbers are never used again.
local slot
local last_sweep = 0
-- Whoever takes back the counts of a worker may be killed meanwhile: after so many seconds another one goes on.
local SWEEP_SECONDS = 1

-- Adds to a count, which all workers share, and to this worker's share of it.
local function add(key, by)
    local own = "s" .. slot .. " " .. key
    -- The own share first: if the worker is killed in between, one too many is taken back, and nothing is held for ever.
    if by > 0 then
        dict:incr(own, by, 0)
        return dict:incr(key, by, 0)
    end
    local count = dict:incr(key, by, 0)
    dict:incr(own, by, 0)
    return count
end

limits.add = add

-- A count of `add`.
function limits.count(key)
    return dict:get(key) or 0
end

-- Begins to count for this worker.
function limits.start()
    slot = dict:incr("slots", 1, 0)
    dict:set("slot " .. slot, process.identity(ngx.worker.pid()) or tostring(ngx.worker.pid()))
end

-- The workers that count, and have not been found to have ended: their numbers, and which processes they are.
local function workers()
    local numbers, names = {}, {}
    local first = dict:get("first slot") or 1
    for number = first, dict:get("slots") or 0 do
        local name = dict:get("slot " .. number)
        if name then
            numbers[#numbers + 1], names[#names + 1] = number, name
        elseif number == first then
            first = first + 1
            dict:set("first slot", first)
        end
    end
    return numbers, names
end

-- The processes of the workers.
function limits.pids()
    local _numbers, names = workers()
    for i, name in ipairs(names) do
        names[i] = process.pid(name)
    end
    return names
end

local function take_back(dead)
    -- Only one worker does it.
    if not dict:add("swept " .. dead, true, SWEEP_SECONDS) then
        return
    end
    local prefix = "s" .. dead .. " "
    for _i, key in ipairs(dict:get_keys(0)) do
        if key:sub(1, #prefix) == prefix then
            local share = dict:get(key) or 0
            if share ~= 0 then
                dict:incr(key:sub(#prefix + 1), -share, 0)
            end
            dict:delete(key)
        end
    end
    dict:set("left", true)
    dict:delete("slot " .. dead)
    dict:delete("swept " .. dead)
end

-- Whether a worker has ended since this was asked last, by any worker.
function limits.lost()
    local left = dict:get("left")
    if left then
        dict:delete("left")
    end
    return left
end

-- Takes back the counts of workers that are gone, at most once a second. `at_once`: now; and where another worker is just at it, this
-- waits for that.
function limits.sweep(at_once)
    local now = ngx.now()
    if not at_once and now - last_sweep < 0.9 then
        return
    end
    last_sweep = now
    local numbers, names = workers()
    for i, number in ipairs(numbers) do
        if number ~= slot and process.ended(names[i]) then
            take_back(number)
            while at_once and dict:get("slot " .. number) do
                ngx.sleep(0.001)
                take_back(number)
            end
        end
    end
end

-- For whoever finds something full: takes back what a worker has held that has ended a moment ago. Returns false where nobody has.
function limits.look_again()
    local now = ngx.now()
    if now - last_sweep > 0.05 then
        limits.sweep(true)
        return true
    end
    -- This is asked for each request that is refused: it takes microseconds.
    local _numbers, names = workers()
    for _i, name in ipairs(names) do
        if process.gone(name) then
            limits.sweep(true)
            return true
        end
    end
    return false
end

local function rooms(model, key)
    local all = { "all", "model " .. model }
    -- Without keys nobody knows who is who.
    if key ~= "" then
        all[3] = "key " .. key
    end
    return all
end

-- Counts one more who waits. Returns true, or nil and which room is full: 1 in all, 2 the model's, 3 the key's. `most` has the
-- three limits.
local function take(model, key, most)
    local taken = rooms(model, key)
    for which, room in ipairs(taken) do
        if add(room, 1) > most[which] then
            for i = which, 1, -1 do
                add(taken[i], -1)
            end
            return nil, which
        end
    end
    return true
end

-- As `take`; what dead workers have left behind does not count.
function limits.take(model, key, most)
    local ok, which = take(model, key, most)
    if not ok and limits.look_again() then
        ok, which = take(model, key, most)
    end
    return ok, which
end

local function full(taken, most)
    for which = 1, 3 do
        local room = taken[which]
        if room and limits.count(room) >= most[which] then
            return which
        end
    end
    return nil
end

-- Which room is full, as `take` would find it; nil: none. Without a model: which one is full whatever the model is.
function limits.full(model, key, most)
    local taken = rooms(model or "", key)
    if not model then
        taken[2] = nil
    end
    local which = full(taken, most)
    if which and limits.look_again() then
        which = full(taken, most)
    end
    return which
end

-- Counts one less.
function limits.give(model, key)
    for _i, room in ipairs(rooms(model, key)) do
        add(room, -1)
    end
end

return limits
