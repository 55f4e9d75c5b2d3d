-- Keeps the answer of a command for its idempotency key; the first that succeeded stays.
--
-- KEYS[1]  {S}:cmd:<key>
-- ARGV[1]  the answer: "=..." of a command that succeeded, "!..." of one that failed for good
-- ARGV[2]  how long it is kept, ms
--
-- Returns the answer that stands now: this one, or that of an earlier success. A failure is replaced by whatever comes
-- after it, for its command may be replayed. Sent twice it answers the same.

local kind = redis.call("TYPE", KEYS[1]).ok
if kind ~= "none" and kind ~= "string" then
    return redis.error_reply("WRONGTYPE " .. KEYS[1] .. " is a " .. kind)
end
local stands = redis.call("GET", KEYS[1])
if stands and string.sub(stands, 1, 1) == "=" then
    return stands
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return ARGV[1]
