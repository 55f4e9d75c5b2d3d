-- Replaces or removes what is noted about one key of an ordered group, if it is still what the asker has seen.
--
-- KEYS[1] {S}:keys:<group>
-- ARGV[1] the key
-- ARGV[2] what the asker has seen
-- ARGV[3] what is to stand there, "" for nothing
--
-- Returns 1 when it stands as asked, 0 when something else was noted meanwhile. Sent twice it answers the same.

local noted = redis.call("HGET", KEYS[1], ARGV[1])
if noted == ARGV[2] then
    if ARGV[3] == "" then
        redis.call("HDEL", KEYS[1], ARGV[1])
    else
        redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
    end
    return 1
end
return (noted or "") == ARGV[3] and 1 or 0
