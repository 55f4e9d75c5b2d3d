-- Notes that a replay of a range begins for a group, unless one has begun and not ended.
--
-- KEYS[1] streamlib:replay:<topic>:<group>
-- ARGV[1] number of the new run
-- ARGV[2] its plan
-- ARGV[3] how long it is kept, ms
-- ARGV[4] "1" to take the place of a run that has not ended
--
-- Returns the plan that stands now: this one, or that of the run which is in the way. Sent twice it answers the same.

local kind = redis.call("TYPE", KEYS[1]).ok
if kind ~= "none" and kind ~= "hash" then
    return redis.error_reply("WRONGTYPE " .. KEYS[1] .. " is a " .. kind)
end
local stands = redis.call("HMGET", KEYS[1], "run", "plan")
if stands[1] and (ARGV[4] ~= "1" or tonumber(stands[1]) >= tonumber(ARGV[1])) then
    return stands[2]
end
redis.call("HSET", KEYS[1], "run", ARGV[1], "plan", ARGV[2])
redis.call("PEXPIRE", KEYS[1], ARGV[3])
return ARGV[2]
