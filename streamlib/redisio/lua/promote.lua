-- Moves due retries of one partition and group into the stream that its workers read.
--
-- KEYS[1] {S}:retry:<group>
-- KEYS[2] {S}:retrybody:<group>
-- KEYS[3] {S}:again:<group>
-- ARGV[1] how many at the most
--
-- Returns the number moved and the ms until the next is due (0: now, -1: none waits).
-- Sent twice, the second moves what has become due since.

for i, wanted in ipairs({ "zset", "hash", "stream" }) do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if kind ~= "none" and kind ~= wanted then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[1])
local due = redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", now, "LIMIT", 0, limit)
local later = redis.call("ZRANGEBYSCORE", KEYS[1], "(" .. now, "+inf", "WITHSCORES", "LIMIT", 0, 1)
local bodies = #due > 0 and redis.call("HMGET", KEYS[2], unpack(due)) or {}

local moved = 0
for i, event_id in ipairs(due) do
    if bodies[i] then
        redis.call("XADD", KEYS[3], "*", "id", event_id, "body", bodies[i])
        moved = moved + 1
    end
    redis.call("ZREM", KEYS[1], event_id)
    redis.call("HDEL", KEYS[2], event_id)
end
if #due == limit then
    return { moved, 0 }
end
return { moved, later[2] and math.max(tonumber(later[2]) - now, 1) or -1 }
