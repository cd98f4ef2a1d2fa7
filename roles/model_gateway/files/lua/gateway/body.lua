-- SPDX-License-Identifier: MIT
-- The model that a request's body names, and whether it asks for a stream, without decoding the rest: clients put megabytes of
-- images before the name. A body in memory is looked through where it lies, one in a file by way of a mapping of it.
local ffi = require "ffi"
local cjson = require "cjson.safe"
local raw = require "gateway.raw"
local var = ngx.var
local C = ffi.C
local find = string.find

ffi.cdef [[
void *memchr(const void *, int, size_t);
int memcmp(const void *, const void *, size_t);
void *memmem(const void *, size_t, const void *, size_t);
int open(const char *, int, ...);
int close(int);
long lseek(int, long, int);
void *mmap(void *, size_t, int, int, int, long);
int munmap(void *, size_t);
]]

local M = {}

-- Longer names are no model's. They are still read as far as this, to be told of.
local LONGEST_NAME = 2048
local LONGEST_HEAD = 8192
local O_RDONLY, SEEK_END, PROT_READ, MAP_PRIVATE = 0, 2, 1, 2

local bytes_type = ffi.typeof("const uint8_t *")
-- The bytes that are just being looked through. A pointer in a variable of Lua's would be an object of its own wherever compiled code
-- ends, for each request.
local at = ffi.new("const uint8_t *[1]")

-- What a byte means outside of texts.
local QUOTE, OPEN, CLOSE = 1, 2, 3
local class = ffi.new("uint8_t[256]")
class[0x22] = QUOTE
class[0x7B], class[0x5B] = OPEN, OPEN
class[0x7D], class[0x5D] = CLOSE, CLOSE
local blank = ffi.new("uint8_t[256]")
blank[0x20], blank[0x09], blank[0x0A], blank[0x0D] = 1, 1, 1, 1

local function refuse(code, message)
    return { status = 400, code = code, message = message }
end

local NO_JSON = refuse("invalid_json", "The request's body is not a JSON object.")
local TWICE = refuse("duplicate_model", "The request names its model twice: there must be one 'model'.")
local NO_TEXT = refuse("invalid_model", "The request's 'model' must be a text.")
local NO_FORM = refuse("invalid_form", "The request's body is not the form that its Content-Type promises.")
local ENCODED = {
    status = 415,
    code = "unsupported_media_type",
    message = "The request's body is compressed; send it without a Content-Encoding.",
}
TWICE.param, NO_TEXT.param = "model", "model"

-- What is looked through is short, and often: LuaJIT compiles it best where no loop has another one within, so that what is rare is
-- a function of its own.

local function skip_more_blanks(i, n)
    while i < n and blank[at[0][i]] == 1 do
        i = i + 1
    end
    return i
end

local function skip_blanks(i, n)
    if i < n and blank[at[0][i]] == 1 then
        i = i + 1
        if i < n and blank[at[0][i]] == 1 then
            return skip_more_blanks(i, n)
        end
    end
    return i
end

-- The place of the quote that ends the text which begins at i, where the first one at `quote` comes after a backslash.
local function escaped_text_end(i, n, quote)
    while true do
        local before = quote - 1
        while before >= i and at[0][before] == 0x5C do
            before = before - 1
        end
        if (quote - before) % 2 == 1 then
            return quote
        end
        local found = C.memchr(at[0] + quote + 1, 0x22, n - quote - 1)
        if found == nil then
            return nil
        end
        quote = tonumber(ffi.cast(bytes_type, found) - at[0])
    end
end

-- The place of the quote that ends the text which begins at i, behind its first quote; nil if none does.
local function text_end(i, n)
    local found = C.memchr(at[0] + i, 0x22, n - i)
    if found == nil then
        return nil
    end
    local quote = tonumber(ffi.cast(bytes_type, found) - at[0])
    if at[0][quote - 1] == 0x5C then
        return escaped_text_end(i, n, quote)
    end
    return quote
end

-- The text between two places, without its escapes; nil if it is none.
local function text_of(from, to)
    local length = math.min(to - from, LONGEST_NAME)
    local escaped = false
    for i = from, from + length - 1 do
        if at[0][i] < 0x20 then
            return nil
        end
        escaped = escaped or at[0][i] == 0x5C
    end
    local text = ffi.string(at[0] + from, length)
    if escaped and to - from <= LONGEST_NAME then
        local decoded = cjson.decode('["' .. text .. '"]')
        return decoded and decoded[1]
    end
    return text
end

local function is(from, to, word)
    return to - from == #word and C.memcmp(at[0] + from, word, #word) == 0
end

-- What comes after a value of an object, at or after i. Returns the place of the next key; or 0 and the place of the bracket that
-- ends the object; or nil.
local function next_key(i, n)
    i = skip_blanks(i, n)
    if i >= n then
        return nil
    elseif at[0][i] == 0x2C then
        i = skip_blanks(i + 1, n)
        return i < n and at[0][i] == 0x22 and i or nil
    end
    return at[0][i] == 0x7D and 0 or nil, i
end

-- The end of a number or a word that begins at i.
local function word_end(i, n)
    while i < n and at[0][i] ~= 0x2C and class[at[0][i]] == 0 and blank[at[0][i]] == 0 do
        i = i + 1
    end
    return i
end
-- The key at i, its quote: whether it is "model", whether it is "stream", and the place of its value; nil if there is no such thing.
local function read_key(i, n)
    local from = i + 1
    local to = text_end(from, n)
    if not to then
        return nil
    end
    local named, streamed = false, false
    local length = to - from
    if length == 5 then
        named = is(from, to, "model")
    elseif length == 6 then
        streamed = is(from, to, "stream")
    end
    if length > 5 and length <= 36 and C.memchr(at[0] + from, 0x5C, length) ~= nil then
        -- The same word, written with escapes.
        named = text_of(from, to) == "model"
    end
    i = skip_blanks(to + 1, n)
    if i >= n or at[0][i] ~= 0x3A then
        return nil
    end
    i = skip_blanks(i + 1, n)
    return i < n and i or nil, named, streamed
end

-- Look through the keys of an object, whose bracket is there, and not those within. Returns the model (nil: it has none) and
-- whether it asks for a stream; or nil, nil and the error.
local function of_json(n)
    local model, stream
    local i = skip_blanks(skip_blanks(0, n) + 1, n)
    local last
    if i < n and at[0][i] == 0x7D then
        i, last = 0, i
    elseif i >= n or at[0][i] ~= 0x22 then
        return nil, nil, NO_JSON
    end
    -- How many brackets are open, that of the object among them.
    local depth = 1
    while not last do
        if depth > 1 then
            if i >= n then
                return nil, nil, NO_JSON
            end
            local what = class[at[0][i]]
            if what == QUOTE then
                i = text_end(i + 1, n)
                if not i then
                    return nil, nil, NO_JSON
                end
                i = i + 1
                if i + 2 < n and at[0][i + 2] == 0x22 and at[0][i + 1] == 0x20 and class[at[0][i]] == 0 then
                    -- What mostly comes after a text is a colon or a comma, a blank, and the next text.
                    i = text_end(i + 3, n)
                    if not i then
                        return nil, nil, NO_JSON
                    end
                    i = i + 1
                end
            else
                if what == OPEN then
                    depth = depth + 1
                elseif what == CLOSE then
                    depth = depth - 1
                end
                i = i + 1
            end
        else
            local named, streamed
            i, named, streamed = read_key(i, n)
            if not i then
                return nil, nil, NO_JSON
            end
            local begin, what = i, class[at[0][i]]
            if what == QUOTE then
                i = text_end(i + 1, n)
                if not i then
                    return nil, nil, NO_JSON
                end
                i = i + 1
            elseif what == OPEN then
                depth = 2
                i = i + 1
            else
                i = word_end(i, n)
                if i == begin then
                    return nil, nil, NO_JSON
                end
            end
            if named then
                if model then
                    return nil, nil, TWICE
                end
                model = what == QUOTE and text_of(begin + 1, i - 1)
                if not model then
                    return nil, nil, NO_TEXT
                end
            elseif streamed then
                stream = is(begin, i, "true")
            end
        end
        if depth == 1 then
            i, last = next_key(i, n)
            if not i then
                return nil, nil, NO_JSON
            end
        end
    end
    if skip_blanks(last + 1, n) < n then
        return nil, nil, NO_JSON
    end
    return model, stream or false
end

-- Where a text is found at or after i; nil if nowhere.
local function search(p, i, n, text)
    if i >= n then
        return nil
    end
    local found = C.memmem(p + i, n - i, text, #text)
    if found == nil then
        return nil
    end
    return tonumber(ffi.cast(bytes_type, found) - p)
end

-- The name of a form's part, from its headers; false for a file.
local function part_name(head)
    for line in (head .. "\r\n"):gmatch("(.-)\r\n") do
        local header, value = line:match("^([%w-]+):%s*(.*)$")
        if header and header:lower() == "content-disposition" and value:sub(1, 9):lower() == "form-data" then
            if find(value, ";%s*[Ff][Ii][Ll][Ee][Nn][Aa][Mm][Ee]%*?%s*=") then
                return false
            end
            return value:match(';%s*[Nn][Aa][Mm][Ee]%s*=%s*"([^"]*)"') or value:match(";%s*[Nn][Aa][Mm][Ee]%s*=%s*([^;%s]+)")
        end
    end
    return nil
end

-- Look through the parts of a form. Returns as of_json does.
local function of_form(p, n, boundary)
    local model, stream
    local mark = "--" .. boundary
    -- The first mark may begin the body; each other one begins a line.
    local at = n >= #mark and ffi.string(p, #mark) == mark and 0 or nil
    if not at then
        local found = search(p, 0, n, "\r\n" .. mark)
        at = found and found + 2
    end
    while at do
        local i = at + #mark
        if i + 2 <= n and p[i] == 0x2D and p[i + 1] == 0x2D then
            return model, stream or false
        end
        local head_from = search(p, i, n, "\r\n")
        local head_to = head_from and search(p, head_from, n, "\r\n\r\n")
        if not head_to or head_to - head_from > LONGEST_HEAD then
            return nil, nil, NO_FORM
        end
        local from = head_to + 4
        -- An empty part: the line break before the next mark is the one that ends the head.
        local to = search(p, from - 2, n, "\r\n" .. mark)
        if not to then
            return nil, nil, NO_FORM
        end
        local name = part_name(ffi.string(p + head_from, head_to - head_from))
        if name == "model" then
            if model then
                return nil, nil, TWICE
            end
            model = ffi.string(p + from, math.max(0, math.min(to - from, LONGEST_NAME)))
        elseif name == "stream" then
            stream = ffi.string(p + from, math.max(0, math.min(to - from, 8))):lower()
            stream = stream == "true" or stream == "1"
        end
        at = to + 2
    end
    return nil, nil, NO_FORM
end

-- As the server does, the Content-Type tells a form from JSON: a text can be both, with a model in each. That header costs nothing,
-- others the time of looking through all.
local function of_bytes(n)
    local kind = raw.text("content_type")
    -- Most name JSON as it is written here.
    local is_form = kind and kind ~= "application/json" and find(kind, "^%s*[Mm][Uu][Ll][Tt][Ii][Pp][Aa][Rr][Tt]/[Ff][Oo][Rr][Mm]%-[Dd][Aa][Tt][Aa]")
    if not is_form then
        local first = skip_blanks(0, n)
        if first < n and at[0][first] == 0x7B then
            return of_json(n)
        end
    end
    local encoding = var.http_content_encoding
    if encoding and encoding ~= "" and encoding:lower() ~= "identity" then
        return nil, nil, ENCODED
    end
    if not is_form then
        return nil, nil, NO_JSON
    end
    local boundary = kind:match('[Bb][Oo][Uu][Nn][Dd][Aa][Rr][Yy]="([^"]+)"') or kind:match("[Bb][Oo][Uu][Nn][Dd][Aa][Rr][Yy]=([^;%s]+)")
    if not boundary or #boundary > 200 then
        return nil, nil, NO_FORM
    end
    return of_form(at[0], n, boundary)
end

local function of_file(name)
    local file = C.open(name, O_RDONLY)
    if file < 0 then
        error("the body's file cannot be opened: " .. name)
    end
    local n = tonumber(C.lseek(file, 0, SEEK_END))
    local mapping = n > 0 and C.mmap(nil, n, PROT_READ, MAP_PRIVATE, file, 0)
    C.close(file)
    if n <= 0 then
        return nil, nil, NO_JSON
    end
    if ffi.cast("intptr_t", mapping) == -1 then
        error("the body's file cannot be mapped: " .. name)
    end
    at[0] = ffi.cast(bytes_type, mapping)
    local ok, model, stream, err = pcall(of_bytes, n)
    C.munmap(mapping, n)
    if not ok then
        error(model, 0)
    end
    return model, stream, err
end

-- The model that the body of this request names (nil: none) and whether it asks for a stream; or nil, nil and the error. The body
-- must have been read.
function M.look()
    local n = raw.look("request_body", at)
    if n and n > 0 then
        return of_bytes(n)
    end
    local file = ngx.req.get_body_file()
    if file then
        return of_file(file)
    end
    return nil, nil, NO_JSON
end

return M
