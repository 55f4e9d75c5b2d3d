-- Counts the halted keys of one partition of an ordered group, a page at a time.
--
-- KEYS[1] {S}:keys:<group>
-- ARGV[1] cursor, "0" to begin
--
-- Returns the next cursor ("0" at the end) and how many keys of this page are halted. Writes nothing. What is noted
-- about a key holds its traceback: counting here spares the network.

local page = redis.call("HSCAN", KEYS[1], ARGV[1], "COUNT", 100)
local halted = 0
for i = 2, #page[2], 2 do
    local noted = page[2][i]
    -- What does not say at which event it halted was not written by us.
    if string.match(noted, "^a?%d+%-%d+ %d+ halted %d+ ") and string.find(noted, "\0", 1, true) then
        halted = halted + 1
    end
end
return { page[1], halted }
