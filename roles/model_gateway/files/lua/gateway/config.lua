-- SPDX-License-Identifier: MIT
-- The settings, the secret of the link and the clients' keys. nginx's master reads them, as root, when it starts and when it
-- is reloaded; its workers need no access to the files.
local cjson = require "cjson.safe"

local M = { settings = {}, token = "", keys = {}, guarded = false }

local DEFAULTS = {
    manager_host = "127.0.0.1",
    manager_port = 9001,
    max_wait_seconds = 300,
    max_waiting = 5000,
    max_waiting_per_model = 1000,
    max_waiting_per_key = 200,
    max_body_bytes = 67108864,
    status_chunks = "auto",
    link_grace_seconds = 5,
}
local STATUS_CHUNKS = { auto = true, webui = true, comments = true, off = true }
local LIMITS = { "max_waiting", "requests_per_minute", "max_in_flight" }
local ENOENT = 2

local function refuse(file, what)
    error(file .. ": " .. what .. "; the role model_gateway writes this file", 0)
end

-- The file's text; nil where there is none. What cannot be read is no reason to do without it.
local function text_of(folder, file)
    local opened, why, code = io.open(folder .. file, "rb")
    if not opened then
        if code == ENOENT then
            return nil
        end
        refuse(file, "cannot be read: " .. tostring(why))
    end
    local text = opened:read("*a")
    opened:close()
    if not text then
        refuse(file, "cannot be read")
    end
    return text
end

local function positive(value)
    return type(value) == "number" and value > 0 and value < 1e15
end

local function settings_of(text)
    local given = cjson.decode(text or "{}")
    if type(given) ~= "table" then
        refuse("settings.json", "is no JSON object")
    end
    local settings = {}
    for name, default in pairs(DEFAULTS) do
        local value = given[name]
        if value == nil or value == cjson.null then
            value = default
        end
        if type(value) ~= type(default) or (type(default) == "number" and not positive(value)) then
            refuse("settings.json", name .. " must be a " .. (type(default) == "number" and "positive number" or "text"))
        end
        settings[name] = value
    end
    if not STATUS_CHUNKS[settings.status_chunks] then
        refuse("settings.json", "status_chunks must be auto, webui, comments or off")
    end
    return settings
end

local function key_of(entry, number)
    local function wrong(what)
        refuse("keys.json", "key " .. number .. ": " .. what)
    end
    if type(entry) ~= "table" or type(entry.name) ~= "string" or entry.name == "" then
        wrong("name must be a text that is not empty")
    end
    if type(entry.sha256) ~= "string" or #entry.sha256 ~= 64 or entry.sha256:find("%X") then
        wrong("sha256 must be 64 hexadecimal digits")
    end
    if type(entry.models) ~= "table" then
        wrong('models must be a list of ids, or ["*"] for all')
    end
    local key = { name = entry.name, all = false, models = {} }
    for _, model in ipairs(entry.models) do
        key.all = key.all or model == "*"
        key.models[model] = true
    end
    for _, limit in ipairs(LIMITS) do
        local value = entry[limit]
        if value ~= nil and value ~= cjson.null then
            if not positive(value) then
                wrong(limit .. " must be a positive number")
            end
            key[limit] = value
        end
    end
    return entry.sha256:lower(), key
end

local function keys_of(text)
    local list = cjson.decode(text or "[]")
    if type(list) ~= "table" or (next(list) ~= nil and #list == 0) then
        refuse("keys.json", "is no JSON list")
    end
    local keys = {}
    for number, entry in ipairs(list) do
        local hash, key = key_of(entry, number)
        if keys[hash] then
            refuse("keys.json", "key " .. number .. ": is the same as that of " .. keys[hash].name)
        end
        keys[hash] = key
    end
    return keys
end

-- Read all files of the folder. Raises what is wrong with one, which keeps nginx from starting; a reload leaves all as it was.
function M.load(folder)
    M.settings = settings_of(text_of(folder, "settings.json"))
    M.token = (text_of(folder, "link-token") or ""):match("^%s*(.-)%s*$")
    if M.token == "" then
        refuse("link-token", "is missing or empty")
    end
    M.keys = keys_of(text_of(folder, "keys.json"))
    M.guarded = next(M.keys) ~= nil
end

return M
