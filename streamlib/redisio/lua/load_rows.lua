-- Reads what a batch of events needs: idempotency keys and rows.
--
-- KEYS    idempotency keys, then row hashes
-- ARGV[1] the count of idempotency keys
--
-- Returns {states, rows}: a state is the key's value or nil; a row is a flat list of fields (empty: no such row), or
-- the type of a key that is no hash. Writes nothing.

local KEYS, pcall = KEYS, redis.pcall -- local: they are looked up for every row
local marks = tonumber(ARGV[1])
local states, rows = {}, {}
for first = 1, marks, 500 do
    local last = math.min(first + 499, marks)
    local found = redis.call("MGET", unpack(KEYS, first, last))
    for i = first, last do
        states[i] = found[i - first + 1]
    end
end
for i = marks + 1, #KEYS do
    local row = pcall("HGETALL", KEYS[i])
    rows[i - marks] = row.err and redis.call("TYPE", KEYS[i]).ok or row
end
return { states, rows }
