-- Reads entries of a stream, as many as a number of bytes has room for. Writes nothing.
--
-- KEYS[1]  a stream
-- ARGV[1]  at most so many bytes of names and values in all, but one entry in any case
-- ARGV[2]  an entry of more bytes than this comes cut; 0 cuts none
-- ARGV[3]  "after": entries behind ARGV[4], at most ARGV[5] of them; "of": those of the ids ARGV[4..], where they exist
--
-- Returns entries as XRANGE does: id, {name, value, ...}. One that is cut begins with the name "dl-cut" and the value
-- "<its bytes> <ARGV[2]>"; then follow its first names and values, each up to 1,000 bytes.

local MOST_PARTS, MOST_BYTES = 64, 1000
local S, room, most, by_ids = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == "of"
local last, at, entries = ARGV[4], 3, {}

local function next_entry()
    if not by_ids then
        local entry = #entries < tonumber(ARGV[5]) and redis.call("XRANGE", S, "(" .. last, "+", "COUNT", 1)[1]
        last = entry and entry[1]
        return entry
    end
    while at < #ARGV do
        at = at + 1
        local entry = redis.call("XRANGE", S, ARGV[at], ARGV[at])[1]
        if entry then
            return entry
        end
    end
end

local function size_of(fields)
    local bytes = 0
    for _, part in ipairs(fields) do
        bytes = bytes + #part
    end
    return bytes
end

local function cut(fields, size)
    local parts = { "dl-cut", string.format("%.0f %.0f", size, most) }
    for i = 1, math.min(#fields, MOST_PARTS) do
        parts[#parts + 1] = string.sub(fields[i], 1, MOST_BYTES)
    end
    return parts
end

local entry = next_entry()
while entry do
    local fields = entry[2]
    local size = size_of(fields)
    if most > 0 and size > most then
        fields = cut(fields, size)
        size = size_of(fields)
    end
    room = room - size
    if room < 0 and #entries > 0 then
        break
    end
    entries[#entries + 1] = { entry[1], fields }
    entry = next_entry()
end
return entries
