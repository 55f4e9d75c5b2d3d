-- Forgets producers of one partition that have not published for a while.
--
-- KEYS[1] {S}:producers
-- ARGV[1] cursor, "0" at the start
-- ARGV[2] idle for at least, ms
--
-- Returns the next cursor ("0" at the end) and the number forgotten.
-- Sent twice, the second finds those already gone. A producer that comes back begins anew.

local time = redis.call("TIME")
local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[2])
local page = redis.call("HSCAN", KEYS[1], ARGV[1], "COUNT", 50)
local idle = {}
for i = 1, #page[2], 2 do
    local at = string.match(page[2][i + 1], "^%d+ (%d+) ")
    if at and tonumber(at) < oldest then
        idle[#idle + 1] = page[2][i]
    end
end
-- One by one: a hash that is small enough for a listpack answers whole, whatever COUNT says.
for _, producer in ipairs(idle) do
    redis.call("HDEL", KEYS[1], producer)
end
return { page[1], #idle }
