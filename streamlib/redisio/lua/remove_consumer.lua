-- Removes consumers of one stream's group that have nothing pending and were not seen for a while.
--
-- KEYS[1] the stream: S or {S}:again:<group>
-- ARGV[1] group
-- ARGV[2] a consumer's name to remove now if it has nothing pending, or "" for all that were idle
-- ARGV[3] idle for at least, ms (with "" in ARGV[2])
--
-- Returns the number removed. Look and removal are one step: XGROUP DELCONSUMER would drop what is pending.
-- Sent twice, the second finds nothing to remove.

local removed = 0
for _, consumer in ipairs(redis.call("XINFO", "CONSUMERS", KEYS[1], ARGV[1])) do
    local info = {}
    for i = 1, #consumer, 2 do
        info[consumer[i]] = consumer[i + 1]
    end
    local chosen = ARGV[2] == info.name or (ARGV[2] == "" and info.idle >= tonumber(ARGV[3]))
    if chosen and info.pending == 0 then
        redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], info.name)
        removed = removed + 1
    end
end
return removed
