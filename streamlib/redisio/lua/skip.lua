-- Gives up the event at which a key of an ordered group has halted: to the dead letters with it, and its key goes on.
--
-- KEYS[1]    {S}:keys:<group>
-- KEYS[2]    the stream that holds the event: S or {S}:again:<group>
-- KEYS[3]    {S}:dead:<group>
-- KEYS[4]    {S}:idem:<group>:<event id>
-- ARGV[1]    group
-- ARGV[2]    the key
-- ARGV[3]    what the asker has seen noted about it
-- ARGV[4]    id of the entry
-- ARGV[5]    idempotency window, ms
-- ARGV[6]    "1" to delete the entry too: in `again` every ack does
-- ARGV[7...] the dead letter's fields; none where the entry does not exist any more
--
-- Returns 1 when it was given up, 0 when the key is not halted at this event (any more).
-- Sent twice it answers the same. XACK is the first write, so that memory can be freed when Redis is full.

for i = 2, 3 do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if kind ~= "none" and kind ~= "stream" then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end
local noted = redis.call("HGET", KEYS[1], ARGV[2])
if noted ~= ARGV[3] then
    return not noted and redis.call("GET", KEYS[4]) == "x" and 1 or 0
end
redis.call("XACK", KEYS[2], ARGV[1], ARGV[4])
redis.call("HDEL", KEYS[1], ARGV[2])
redis.call("SET", KEYS[4], "x", "PX", ARGV[5])
if ARGV[6] == "1" then
    redis.call("XDEL", KEYS[2], ARGV[4])
end
if #ARGV > 6 then
    redis.call("XADD", KEYS[3], "*", unpack(ARGV, 7))
end
return 1
