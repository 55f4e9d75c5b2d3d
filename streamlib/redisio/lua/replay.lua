-- Sends one dead letter back to its group: the only way out of `x`.
--
-- KEYS[1] {S}:dead:<group>
-- KEYS[2] {S}:again:<group>
-- KEYS[3] {S}:idem:<group>:<event id>
-- KEYS[4] {S}:done:<group>
-- KEYS[5..] the sets that may hold the event's done mark, one per segment of the plan
-- ARGV[1] id of the dead letter
-- ARGV[2] event id
-- ARGV[3] body of the entry of `again`
-- ARGV[4] idempotency window, ms
-- ARGV[5] the plan of these sets as the asker knows it
-- ARGV[6] digest of the event's id
--
-- Returns what was found:
--   0 replayed: the event lies in `again`, the dead letter is gone
--   1 gone: no such dead letter (any more); this is the answer to a second sending too
--   2 done: the event was completed meanwhile; the dead letter stays
--   3 busy: the event is claimed, or comes again anyway; the dead letter stays
--   4 the sets go by another plan than the asker knows; nothing was written
-- XADD is the first write: when Redis is full nothing has happened.

for _, key in ipairs({ KEYS[1], KEYS[2] }) do
    local kind = redis.call("TYPE", key).ok
    if kind ~= "none" and kind ~= "stream" then
        return redis.error_reply("WRONGTYPE " .. key .. " is a " .. kind)
    end
end
if #redis.call("XRANGE", KEYS[1], ARGV[1], ARGV[1]) == 0 then
    return 1
end
local state = redis.call("GET", KEYS[3])
if (redis.call("HGET", KEYS[4], "plan") or "") ~= ARGV[5] then
    return 4
end
for i = 5, state and 0 or #KEYS do
    if redis.call("SISMEMBER", KEYS[i], ARGV[6]) == 1 then
        state = "d"
    end
end
if state == "d" then
    return 2
elseif state and state ~= "x" then
    return 3
end
redis.call("XADD", KEYS[2], "*", "id", ARGV[2], "body", ARGV[3])
redis.call("SET", KEYS[3], "r", "PX", ARGV[4])
redis.call("XDEL", KEYS[1], ARGV[1])
return 0
