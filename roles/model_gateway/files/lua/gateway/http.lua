-- SPDX-License-Identifier: MIT
-- Reads the answer of a server from a socket, its body piece by piece.
local http = {}

-- The most that is read at once.
http.PIECE = 65536
local PIECE = http.PIECE

-- The status and the headers of the answer: by their names in small letters, and as a list of names and values.
function http.read_head(sock)
    while true do
        local line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
        local version, status = line:match("^HTTP/(1%.[01]) (%d%d%d)")
        if not version then
            return nil, "that is not HTTP"
        end
        local headers = {}
        while true do
            line, why = sock:receive("*l")
            if not line then
                return nil, why
            elseif line == "" then
                break
            end
            local name, value = line:match("^([^:%s]+)%s*:%s*(.-)%s*$")
            if name then
                headers[name:lower()] = value
                headers[#headers + 1] = { name, value }
            end
        end
        -- What comes before the answer, as 100, is none.
        if tonumber(status) >= 200 then
            return tonumber(status), headers
        end
    end
end

-- Reads `length` bytes as they come.
local function read_length(sock, length, take)
    while length > 0 do
        local piece, why = sock:receiveany(math.min(length, PIECE))
        if not piece then
            return nil, why
        end
        length = length - #piece
        if take(piece) == false then
            return true, "unfinished"
        end
    end
    return true
end

local function read_chunks(sock, take)
    while true do
        local line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
        local size = tonumber(line:match("^%s*(%x+)") or "", 16)
        if not size then
            return nil, "a chunk without a size"
        elseif size == 0 then
            repeat
                line = sock:receive("*l")
            until not line or line == ""
            return true, not line and "unfinished" or nil
        end
        local ok
        ok, why = read_length(sock, size, take)
        if not ok then
            return nil, why
        end
        line, why = sock:receive("*l")
        if not line then
            return nil, why
        end
    end
end

local function read_to_end(sock, take)
    while true do
        local piece, why = sock:receiveany(PIECE)
        if not piece then
            if why == "closed" then
                return true, "closed"
            end
            return nil, why
        end
        if take(piece) == false then
            return true, "unfinished"
        end
    end
end

-- Reads the body, each piece as it comes, to `take`, which returns false when it has had enough. Returns true, with "closed" where
-- nothing but the end of the connection says that this is all, or "unfinished" where something may still come that does not belong to
-- it; or nil and why it is not complete.
function http.read_body(sock, headers, take)
    local coding = headers["transfer-encoding"]
    if coding and coding:lower():find("chunked", 1, true) then
        return read_chunks(sock, take)
    elseif headers["content-length"] then
        return read_length(sock, tonumber(headers["content-length"]) or 0, take)
    end
    return read_to_end(sock, take)
end

return http
