-- Marks claimed events as done and acknowledges them, as somebody would write it by hand: the yardstick of a worker.
--
-- KEYS[1]      the stream S
-- KEYS[2..n+1] {S}:idem:<group>:<event id>, one per entry
-- ARGV[1]      group
-- ARGV[2]      the token of the one who claimed
-- ARGV[3]      how long "done" is remembered, ms
-- ARGV[4..n+3] entry ids
--
-- Returns how many are settled; the others were not ours.
-- Sent twice it answers the same: what is marked as done counts again.

local ids, keys = {}, {}
for i = 2, #KEYS do
    local state = redis.call("GET", KEYS[i])
    if state == ARGV[2] or state == "d" then
        ids[#ids + 1], keys[#keys + 1] = ARGV[i + 2], KEYS[i]
    end
end
if #ids > 0 then
    redis.call("XACK", KEYS[1], ARGV[1], unpack(ids))
end
for i = 1, #keys do
    redis.call("SET", keys[i], "d", "PX", ARGV[3])
end
return #ids
