-- SPDX-License-Identifier: MIT
-- What is said to whoever waits. The seconds are rounded the more the longer it takes: a text that changes is sent.
local words = {}

local function seconds(eta)
    if eta < 20 then
        return string.format("%d s", math.max(1, math.ceil(eta)))
    elseif eta < 100 then
        return string.format("%d s", math.ceil(eta / 5) * 5)
    end
    return string.format("%d min", math.ceil(eta / 60))
end

-- `place 3, about 12 s`; the seconds are left out where they are unknown or over.
function words.place(place, eta)
    if eta and eta > 0 then
        return string.format("place %d, about %s", place, seconds(eta))
    end
    return string.format("place %d", place)
end

-- `Waiting for qwen: place 3, about 12 s`, with what of it is known.
function words.waiting(name, place, eta)
    if place then
        return "Waiting for " .. name .. ": " .. words.place(place, eta)
    elseif eta and eta > 0 then
        return "Waiting for " .. name .. ": about " .. seconds(eta)
    end
    return "Waiting for " .. name
end

-- `Waited 12 s for qwen`
function words.waited(name, waited)
    return string.format("Waited %.1f s for %s", waited, name)
end

return words
