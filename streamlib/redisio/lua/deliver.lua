-- Delivers entries of one partition to the worker that owns it, in order: pending ones first, then new ones.
--
-- KEYS[1] {S}:owner:<group>
-- KEYS[2] S
-- KEYS[3] {S}:again:<group>
-- ARGV[1] who asks
-- ARGV[2] the epoch in which it owns the partition
-- ARGV[3] group
-- ARGV[4] consumer
-- ARGV[5] at most so many entries of each stream
-- ARGV[6] of S, the asker has every pending entry below this id
-- ARGV[7] the same for `again`
-- ARGV[8] "ids" to be told the ids of entries only, {id}, where the entries are too large for one reply; else ""
--
-- Returns the empty list when another worker or another epoch owns the partition: nothing is delivered. Else
--   server ms, what it is ("pending" or "new"), entries of `again`, entries of S, ids of pending entries that do not
--   exist any more in `again`, the same for S, last id of `again`, last id of S ("0-0" where there is none), and how
--   many entries are pending with the group in both (counted only where there is nothing to give, else 0)
-- New entries are given only when nothing pending is left at or after the ids given, so none is ever overtaken by one
-- whose delivery was lost on the way. Sent twice it answers the same: what the first run delivered is pending then.

local owner = redis.call("HMGET", KEYS[1], "owner", "epoch")
if owner[1] ~= ARGV[1] or owner[2] ~= ARGV[2] then
    return {}
end
local group, consumer, count, only_ids = ARGV[3], ARGV[4], ARGV[5], ARGV[8] == "ids"
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function last_id(stream)
    local last = redis.call("XREVRANGE", stream, "+", "-", "COUNT", 1)[1]
    return last and last[1] or "0-0"
end

local function existing(entries)
    local found = {}
    for _, entry in ipairs(entries) do
        if entry and entry[2] then
            found[#found + 1] = only_ids and { entry[1] } or entry
        end
    end
    return found
end

local again = redis.call("XAUTOCLAIM", KEYS[3], group, consumer, 0, ARGV[7], "COUNT", count)
local plain = redis.call("XAUTOCLAIM", KEYS[2], group, consumer, 0, ARGV[6], "COUNT", count)
local again_gone, plain_gone = again[3] or {}, plain[3] or {}
if #again[2] + #again_gone + #plain[2] + #plain_gone > 0 or again[1] ~= "0-0" or plain[1] ~= "0-0" then
    return { now, "pending", existing(again[2]), existing(plain[2]), again_gone, plain_gone, "0-0", "0-0", 0 }
end
local entries = { {}, {} }
local read =
    redis.call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", KEYS[3], KEYS[2], ">", ">")
for _, one in ipairs(read or {}) do
    entries[one[1] == KEYS[3] and 1 or 2] = existing(one[2])
end
local left = 0
if #entries[1] + #entries[2] == 0 then
    left = redis.call("XPENDING", KEYS[3], group)[1] + redis.call("XPENDING", KEYS[2], group)[1]
end
return { now, "new", entries[1], entries[2], {}, {}, last_id(KEYS[3]), last_id(KEYS[2]), left }
