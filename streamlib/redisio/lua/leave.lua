-- Takes a worker out of the register of those who live, and lets the others know.
--
-- KEYS[1] streamlib:workers, see beat.lua
-- ARGV[1] worker id
--
-- Returns 1 when it was there, else 0: then nothing changes, so that it may be sent twice.

if redis.call("HDEL", KEYS[1], ARGV[1]) == 0 then
    return 0
end
local changes = redis.call("HGET", KEYS[1], "changes") or ""
local counted = #changes <= 15 and string.match(changes, "^%d+$") or 0
redis.call("HSET", KEYS[1], "changes", tonumber(counted) + 1)
return 1
