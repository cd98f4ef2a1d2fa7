-- SPDX-License-Identifier: MIT
-- The processes of workers, as /proc tells of them: which one is which, whether it has ended, and which files it has open.
local ffi = require "ffi"
local C = ffi.C

-- The same in glibc and in musl, with 64 bits.
ffi.cdef [[
typedef struct { uint64_t ino; int64_t off; unsigned short length; unsigned char type; char name[256]; } gateway_entry;
void *opendir(const char *);
gateway_entry *readdir(void *);
int closedir(void *);
long readlink(const char *, char *, size_t);
]]

local process = {}

local ENOENT = 2
local LONGEST = 4096
local target = ffi.new("char[?]", LONGEST)

-- What a link leads to; nil and the number of the error, if it can't be told.
local function read_link(name)
    local length = tonumber(C.readlink(name, target, LONGEST))
    if length < 0 then
        return nil, ffi.errno()
    end
    return ffi.string(target, length)
end

-- The names in a folder; nil if it can't be read.
function process.names(folder)
    local open = C.opendir(folder)
    if open == nil then
        return nil
    end
    local names = {}
    while true do
        local entry = C.readdir(open)
        if entry == nil then
            break
        end
        names[#names + 1] = ffi.string(entry.name)
    end
    C.closedir(open)
    return names
end

-- Which process this is, PID.START: its number may be another's tomorrow, with the time of its start it is not. Nil: there is none;
-- false: who has no file left can't tell.
function process.identity(pid)
    local file, _why, code = io.open("/proc/" .. pid .. "/stat", "rb")
    if not file then
        return code ~= ENOENT and false or nil
    end
    local text = file:read("*a")
    file:close()
    -- The name of the program, in brackets, may hold anything. The state is the first field after it, the start the 20th.
    local fields = text and text:match("^.*%) (.*)$")
    if not fields or fields:sub(1, 1) == "Z" or fields:sub(1, 1) == "X" then
        return nil
    end
    local number = 0
    for field in fields:gmatch("%S+") do
        number = number + 1
        if number == 20 then
            return pid .. "." .. field
        end
    end
    return nil
end

function process.pid(identity)
    return identity:match("^%d+")
end

-- Whether it has surely ended, or is past its last instruction; quick, and sees that before a client of it can. False: it may have.
function process.gone(identity)
    local _name, code = read_link("/proc/" .. process.pid(identity) .. "/exe")
    return code == ENOENT
end

-- Whether it has ended. Of one whose start is not known only the number tells; and a worker from before a reload may have been written
-- PID:START.
function process.ended(identity)
    if process.gone(identity) then
        return true
    end
    local pid, start = identity:match("^(%d+)%D?(%d*)$")
    local now = process.identity(pid)
    return now == nil or (now and start ~= "" and now ~= pid .. "." .. start)
end

-- The names of the files that a process has open, without their folders, as keys; nil if that can't be told.
function process.open_files(pid)
    local folder = "/proc/" .. pid .. "/fd"
    local numbers = process.names(folder)
    if not numbers then
        return nil
    end
    local files = {}
    for _i, number in ipairs(numbers) do
        local path, code = read_link(folder .. "/" .. number)
        if path then
            files[path:match("[^/]*$")] = true
        elseif code ~= ENOENT and number:find("^%d") then
            -- Whoever may list them need not be allowed to see which ones they are.
            return nil
        end
    end
    return files
end

return process
