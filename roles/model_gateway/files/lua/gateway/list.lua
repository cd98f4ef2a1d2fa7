-- SPDX-License-Identifier: MIT
-- GET /v1/models: what the manager's state has, at once, whatever the servers do. The entries are JSON texts and stay as they
-- came.
local errors = require "gateway.errors"
local gate = require "gateway.gate"
local keys = require "gateway.keys"

local M = {}

-- Names longer than that are compared with none, and not repeated in full.
local LONGEST = 100

-- The texts of a generation of the state, by key.
local texts, texts_of = {}, nil

local function add(entries, model)
    entries[#entries + 1] = model.entry
    for _, entry in ipairs(model.adapter_entries or {}) do
        entries[#entries + 1] = entry
    end
end

local function text_for(key, generation)
    if texts_of ~= generation then
        texts, texts_of = {}, generation
    end
    local name = key and key.name or ""
    local text = texts[name]
    if not text then
        local entries = {}
        for _, model in ipairs(gate.models()) do
            if keys.allows(key, model.id) then
                add(entries, model)
            end
        end
        text = '{"object":"list","data":[' .. table.concat(entries, ",") .. "]}"
        texts[name] = text
    end
    return text
end

-- The entry of one of the model's names: an adapter has its own.
local function entry_of(model, name)
    for number, adapter in ipairs(model.adapters or {}) do
        if adapter == name and name ~= model.id then
            return (model.adapter_entries or {})[number] or model.entry
        end
    end
    return model.entry
end

-- How many pairs of letters two names have in common, from 0 to 1.
local function likeness(one, other)
    local pairs_of_one, number = {}, 0
    for at = 1, #one - 1 do
        local pair = one:sub(at, at + 1)
        pairs_of_one[pair] = (pairs_of_one[pair] or 0) + 1
        number = number + 1
    end
    local common = 0
    for at = 1, #other - 1 do
        local pair = other:sub(at, at + 1)
        local left = pairs_of_one[pair] or 0
        if left > 0 then
            pairs_of_one[pair] = left - 1
            common = common + 1
        end
    end
    return 2 * common / math.max(1, number + #other - 1)
end

local function nearest(name, key)
    local best, most = nil, 0
    if #name > LONGEST then
        return nil
    end
    name = name:lower()
    for other, model in pairs(gate.names()) do
        if keys.allows(key, model.id) and #other <= LONGEST then
            local like = likeness(name, other:lower())
            if like > most or (like == most and best and other < best) then
                best, most = other, like
            end
        end
    end
    return best
end

-- The error about a model that is not there: it names the one that was probably meant.
function M.no_such_model(name, key)
    -- What is no ASCII may be no UTF-8 either, and would make the answer no JSON.
    local shown = (#name <= LONGEST and name or name:sub(1, LONGEST) .. "..."):gsub("[\128-\255]", "?")
    local message = "There is no model '" .. shown .. "'"
    local best = nearest(name, key)
    message = message .. (best and ("; the nearest is '" .. best .. "'.") or ".") .. " GET /v1/models lists all."
    return { status = 404, code = "model_not_found", message = message, param = "model" }
end

local function answer(text)
    ngx.status = 200
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text
    if ngx.req.get_method() ~= "HEAD" then
        ngx.print(text)
    end
    return ngx.exit(200)
end

-- Answer what a route of routes.lua asks for: the list, the list of one model, or one entry.
function M.answer(route, key)
    if not gate.await_state() then
        return errors.answer(gate.STARTING)
    end
    local generation = gate.fresh()
    local name = route.one or route.fixed
    if not name then
        return answer(text_for(key, generation))
    end
    local model = gate.find(name)
    if not model or not keys.allows(key, model.id) then
        return errors.answer(M.no_such_model(name, key))
    end
    if route.one then
        return answer(entry_of(model, name))
    end
    local entries = {}
    add(entries, model)
    return answer('{"object":"list","data":[' .. table.concat(entries, ",") .. "]}")
end

return M
