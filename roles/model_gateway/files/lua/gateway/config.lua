-- SPDX-License-Identifier: MIT
-- The settings, the secret of the link and the clients' keys. nginx's master reads them, as root, when it starts and when it
-- is reloaded; its workers need no access to the files.
local cjson = require "cjson.safe"

local M = { settings = {}, token = "", keys = {}, guarded = false, hosts = {} }

-- What settings.json has to say. Its defaults are the role's business.
local KINDS = {
    manager_host = "text",
    manager_port = "number",
    max_wait_seconds = "number",
    max_waiting = "number",
    max_waiting_per_model = "number",
    max_waiting_per_key = "number",
    max_body_bytes = "number",
    max_spool_bytes = "number",
    status_chunks = "text",
    link_grace_seconds = "number",
    allowed_hosts = "list",
}
local TYPES = { text = "string", number = "number", list = "table" }
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
    local given = cjson.decode(text or "")
    if type(given) ~= "table" then
        refuse("settings.json", text and "is no JSON object" or "is missing")
    end
    local settings = {}
    for name, kind in pairs(KINDS) do
        local value = given[name]
        if type(value) ~= TYPES[kind] or (kind == "number" and not positive(value)) then
            refuse("settings.json", name .. " must be a " .. (kind == "number" and "positive number" or kind))
        end
        settings[name] = value
    end
    if not STATUS_CHUNKS[settings.status_chunks] then
        refuse("settings.json", "status_chunks must be auto, webui, comments or off")
    end
    return settings
end

-- The names by which clients without keys may call the gateway, in small letters: those that were set, and the host's own.
local function hosts_of(settings)
    -- The last one is what containers call their host.
    local hosts = { localhost = true, ["host.docker.internal"] = true }
    local file = io.open("/proc/sys/kernel/hostname", "r")
    local own = file and file:read("*l")
    if file then
        file:close()
    end
    if own then
        local label = own:match("^[^.]+") or own
        for _, name in ipairs({ own, label, label .. ".local" }) do
            hosts[name:lower()] = true
        end
    end
    for _, name in ipairs(settings.allowed_hosts) do
        if type(name) ~= "string" then
            refuse("settings.json", "allowed_hosts must be a list of texts")
        end
        hosts[name:lower()] = true
    end
    return hosts
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
    M.hosts = hosts_of(M.settings)
    M.token = (text_of(folder, "link-token") or ""):match("^%s*(.-)%s*$")
    if M.token == "" then
        refuse("link-token", "is missing or empty")
    end
    M.keys = keys_of(text_of(folder, "keys.json"))
    M.guarded = next(M.keys) ~= nil
end

return M
