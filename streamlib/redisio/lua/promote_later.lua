-- Moves delayed events of one partition that are due into its stream, for every group.
--
-- KEYS[1] the stream S
-- KEYS[2] {S}:later
-- KEYS[3] {S}:laterbody
-- ARGV[1] how many at the most
--
-- Returns the number moved, the ms until the next is due (0: now, -1: none waits), then the ids of events that cannot
-- be moved: their body is missing or is none. They keep it and are looked at again in a minute, so that they block
-- nobody. Sent twice, the second moves what has become due since.

local AGAIN_MS = 60000
local MOST_FIELDS = 7000 -- names and values that unpack() can hand to one XADD

for i, wanted in ipairs({ "stream", "zset", "hash" }) do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if kind ~= "none" and kind ~= wanted then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end

-- The names and values in a body, nil if it is none: "<length>:<bytes>" of each.
local function unpacked(body)
    local fields, at = {}, 1
    while body and at <= #body do
        local _, colon, length = string.find(body, "^(%d+):", at)
        if not colon or colon + tonumber(length) > #body or #fields == MOST_FIELDS then
            return nil
        end
        at = colon + tonumber(length) + 1
        fields[#fields + 1] = string.sub(body, colon + 1, at - 1)
    end
    return #fields > 0 and #fields % 2 == 0 and fields or nil
end

local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[1])
local due = redis.call("ZRANGEBYSCORE", KEYS[2], "-inf", now, "LIMIT", 0, limit)
local later = redis.call("ZRANGEBYSCORE", KEYS[2], "(" .. now, "+inf", "WITHSCORES", "LIMIT", 0, 1)
local bodies = #due > 0 and redis.call("HMGET", KEYS[3], unpack(due)) or {}

local moved, refused = 0, {}
for i, event_id in ipairs(due) do
    local fields = unpacked(bodies[i])
    if fields then
        local added = redis.pcall("XADD", KEYS[1], "*", unpack(fields))
        if type(added) == "table" then
            -- Redis is full, or the stream can hold no further id: nothing of it is this event's own fault.
            return moved == 0 and added or { moved, AGAIN_MS, unpack(refused) }
        end
        redis.call("ZREM", KEYS[2], event_id)
        redis.call("HDEL", KEYS[3], event_id)
        moved = moved + 1
    else
        refused[#refused + 1] = event_id
    end
end
for _, event_id in ipairs(refused) do
    redis.call("ZADD", KEYS[2], string.format("%.0f", now + AGAIN_MS), event_id)
end
local next_ms = later[2] and math.max(tonumber(later[2]) - now, 1) or #refused > 0 and AGAIN_MS or -1
return { moved, #due == limit and 0 or next_ms, unpack(refused) }
