-- SPDX-License-Identifier: MIT
-- How many requests wait: in all, for each model, for each key, over all workers. Beside each count, a worker keeps its own
-- share of it, so that what a killed worker has left behind can be taken back.
local limits = {}

local dict = ngx.shared.gateway_waiting
-- Workers are numbered as they start; the numbers are never used again.
local slot
local last_sweep = 0
local ENOENT = 2

-- Which process this is: its number may be another's tomorrow, with the time of its start it is not. Nil: there is none; false: who has
-- no file left can't tell.
local function identity(pid)
    local file, _why, code = io.open("/proc/" .. pid .. "/stat", "r")
    if not file then
        return code ~= ENOENT and false or nil
    end
    local text = file:read("*a")
    file:close()
    -- The name of the process, in parentheses, may have anything in it. The start is the 22nd field, the 20th after it.
    local state, rest = (text or ""):match("^.*%)%s+(%S)%s+(.*)$")
    if not state or state == "Z" or state == "X" then
        return nil
    end
    local field = 0
    for word in rest:gmatch("%S+") do
        field = field + 1
        if field == 19 then
            return pid .. ":" .. word
        end
    end
    return nil
end

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
    dict:set("slot " .. slot, identity(ngx.worker.pid()) or tostring(ngx.worker.pid()))
end

local function take_back(dead)
    -- Only one worker does it.
    if not dict:add("swept " .. dead, true) then
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
    dict:delete("slot " .. dead)
    dict:delete("swept " .. dead)
end

-- Takes back the counts of workers that are gone, at most once a second.
function limits.sweep(at_once)
    local now = ngx.now()
    if not at_once and now - last_sweep < 0.9 then
        return
    end
    last_sweep = now
    local first = dict:get("first slot") or 1
    for number = first, dict:get("slots") or 0 do
        local name = dict:get("slot " .. number)
        if name then
            local found = number == slot and name or identity(name:match("^%d+"))
            if found ~= false and found ~= name then
                take_back(number)
            end
        elseif number == first then
            first = first + 1
            dict:set("first slot", first)
        end
    end
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
    if not ok and ngx.now() - last_sweep > 0.05 then
        limits.sweep(true)
        ok, which = take(model, key, most)
    end
    return ok, which
end

-- Which room is full, as `take` would find it; nil: none.
function limits.full(model, key, most)
    for which, room in ipairs(rooms(model, key)) do
        if limits.count(room) >= most[which] then
            return which
        end
    end
    return nil
end

-- Counts one less.
function limits.give(model, key)
    for _i, room in ipairs(rooms(model, key)) do
        add(room, -1)
    end
end

return limits
