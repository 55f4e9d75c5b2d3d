-- Takes, renews or releases the ownership of one partition for one group.
--
-- KEYS[1] {S}:owner:<group>, a hash: owner, epoch, deadline (server ms; 0 once released); never expires
-- ARGV[1] "take", "renew" or "release"
-- ARGV[2] who asks
-- ARGV[3] the epoch it holds; 0 when taking
-- ARGV[4] lease, ms
--
-- Returns {1, epoch, ms until it ends} when the asker owns the partition (or has just released it), else
-- {0, epoch of the owner, ms until it may be taken}. The epoch only grows: it fences every earlier owner.
-- Sent twice, each answers the same. A lease that has ended, but that nobody took, may still be renewed; one that was
-- released may not: a renewal that was under way meanwhile would keep the next owner out.
-- The first write removes nothing and is let through by a full server, and the rest with it: an owner that lost its
-- partition for want of memory could not even acknowledge what would free some.

local held = redis.call("HMGET", KEYS[1], "owner", "epoch", "deadline")
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner, epoch, deadline = held[1], tonumber(held[2] or 0) or 0, tonumber(held[3] or 0) or 0
local lease = tonumber(ARGV[4])

if ARGV[1] == "take" then
    if deadline > now and owner ~= ARGV[2] then
        return { 0, epoch, deadline - now }
    elseif deadline <= now then
        epoch = math.max(epoch + 1, now)
    end
    redis.call("HDEL", KEYS[1], "")
    redis.call("HSET", KEYS[1], "owner", ARGV[2], "epoch", epoch, "deadline", now + lease)
    return { 1, epoch, lease }
end
if owner ~= ARGV[2] or epoch ~= tonumber(ARGV[3]) then
    return { 0, epoch, math.max(deadline - now, 0) }
elseif ARGV[1] == "renew" then
    if deadline == 0 then
        return { 0, epoch, 0 }
    end
    redis.call("HDEL", KEYS[1], "")
    redis.call("HSET", KEYS[1], "deadline", now + lease)
    return { 1, epoch, lease }
end
redis.call("HDEL", KEYS[1], "")
redis.call("HSET", KEYS[1], "deadline", 0)
return { 1, epoch, 0 }
