-- SPDX-License-Identifier: MIT
-- Which paths exist. Everything else is 404, and no server sees it. The path is nginx's: decoded, slashes merged, dots resolved;
-- what is sent to a server is the path of these tables, never what the client wrote.
local match = string.match

local M = {}

local NAMED = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
}

-- The paths whose body names a model.
M.posted = {}
for _, path in ipairs(NAMED) do
    M.posted[path] = path
end

-- What a path asks for: a table with `path` (a POST to be sent on, to the model `fixed` if there is one), or with `list` (the
-- models; with `fixed`, of that one alone) or with `one` (one model's entry). Nil: there is no such path.
function M.of(uri)
    local path = M.posted[uri]
    if path then
        return { path = path }
    end
    if uri == "/v1/models" then
        return { list = true }
    end
    local name = match(uri, "^/v1/models/(.+)$")
    if name then
        return { one = name }
    end
    local fixed, rest = match(uri, "^/m/(.-)(/v1/.+)$")
    if not fixed then
        fixed, rest = match(uri, "^/m/(.+)(/d?e?tokenize)$")
    end
    if not fixed or fixed == "" then
        return nil
    end
    path = M.posted[rest]
    if path then
        return { path = path, fixed = fixed }
    end
    if rest == "/v1/models" then
        return { list = true, fixed = fixed }
    end
    return nil
end

return M
