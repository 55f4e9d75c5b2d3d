-- Reads a page of an aggregate's events, and with the first page its snapshot and the answer of a command. Writes nothing.
--
-- KEYS[1]  {S}:agg:<id>
-- KEYS[2]  {S}:snap:<id>
-- KEYS[3]  {S}:cmd:<idempotency key>; any name of that kind when no answer is looked for
-- ARGV[1]  the version after which to read
-- ARGV[2]  the last version to read, -1 for all
-- ARGV[3]  how many events at the most
-- ARGV[4]  how many bytes at the most, but one event in any case
-- ARGV[5]  the stamp of the snapshots that can be read, "" to use none
-- ARGV[6]  "1" to look for an answer
--
-- Returns {answer or nil, snapshot or nil, number of events in the list, version after which the events come, events...}.
-- With an answer nothing else is read. A snapshot "<stamp> <version> <entry id> <commit id> <state>" is used when it has
-- that stamp and stands for an event between ARGV[1] and ARGV[2] that is still in the list; reading then starts behind.

local STEP = 64
local aggregate, snapshots = KEYS[1], KEYS[2]
local after, upto = tonumber(ARGV[1]), tonumber(ARGV[2])
local most, most_bytes, stamp = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

for i, wanted in ipairs({ "list", "", "string" }) do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if wanted ~= "" and kind ~= "none" and kind ~= wanted then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end

local answer = ARGV[6] == "1" and redis.call("GET", KEYS[3])
if answer then
    return { answer }
end
local length = redis.call("LLEN", aggregate)
local last = upto >= 0 and math.min(upto, length) or length

-- The version that a snapshot stands for, nil if it cannot be used.
local function usable(snapshot)
    if type(snapshot) ~= "string" then
        return nil
    end
    local of, version, mark = string.match(snapshot, "^(%S+) (%d+) (%S+ %S+ )")
    version = of == stamp and tonumber(version)
    if not version or version <= after or version > last then
        return nil
    end
    local element = redis.call("LINDEX", aggregate, version - 1)
    return string.sub(element, 1, #mark) == mark and version or nil
end

local snapshot = stamp ~= "" and redis.pcall("GET", snapshots)
local version = usable(snapshot)
after = version or after

local reply = { false, version and snapshot or false, length, after }
local taken, bytes, at = 0, 0, after
while taken < most and at < last do
    local elements = redis.call("LRANGE", aggregate, at, math.min(at + STEP, after + most, last) - 1)
    for _, element in ipairs(elements) do
        bytes = bytes + #element
        if taken > 0 and bytes > most_bytes then
            return reply
        end
        taken = taken + 1
        reply[taken + 4] = element
    end
    at = at + #elements
end
return reply
