-- Appends events to an aggregate and to its topic's partition: both or nothing.
--
-- KEYS[1]  the stream S
-- KEYS[2]  {S}:agg:<id>, a list: its element n - 1 is version n
-- KEYS[3]  {S}:later
-- KEYS[4]  {S}:cmd:<idempotency key>; any name of that kind when there is no answer to keep
-- ARGV[1]  expected version: how many events the aggregate has
-- ARGV[2]  commit id, without spaces: the same whenever the same append is sent
-- ARGV[3]  limits.topic_len, 0 for none
-- ARGV[4]  the answer to keep with the events
-- ARGV[5]  how long the answer is kept, ms; 0 for no answer
-- ARGV[6]  number of events n
-- ARGV[7...] the events, in runs that differ in the first value and in the last part alone. A run: how many events, how
--           many parts (names and values) each has, the parts of its first event, all that comes before the last part
--           in the fields of its element; and of each further event those two, or the last part alone where there are
--           no more than a name and a value
--
-- Returns {"+", entry ids...} appended; {"=", entry ids...} this commit was appended before, whatever has come since;
-- {"a", answer} this idempotency key has had an answer before; {"v", actual} the aggregate has another version than
-- expected; {"f"} no room for so many. Only the first writes. An element is "<entry id> <commit id> <fields>", the
-- fields as later.pack has them.
-- Sent twice it answers the same: a commit is looked for where it must lie, at version expected + 1, never at the head.

local stream, aggregate, later, answered = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local expected, commit, limit = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local ttl_ms, count = tonumber(ARGV[5]), tonumber(ARGV[6])

-- What does not add up is refused before anything is looked at.
local at, left = 7, count
while left > 0 do
    local events, parts = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    if not events or not parts or events < 1 or events > left or parts < 2 or parts % 2 > 0 then
        break
    end
    left, at = left - events, at + 3 + parts + (events - 1) * (parts > 2 and 2 or 1)
end
if left ~= 0 or at ~= #ARGV + 1 then
    return redis.error_reply("ERR append: its arguments do not make " .. ARGV[6] .. " events")
end

-- What is asked of a key is refused where it is of another type.
local actual, size = redis.pcall("LLEN", aggregate), redis.pcall("XLEN", stream)
local waiting = limit > 0 and redis.pcall("ZCARD", later)
local answer = ttl_ms > 0 and redis.pcall("GET", answered)
for i, found in ipairs({ size, actual, waiting, answer }) do
    if type(found) == "table" then
        if string.find(found.err, "^WRONGTYPE") then
            return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. redis.call("TYPE", KEYS[i]).ok)
        end
        return found
    end
end

-- A write that changes nothing and needs no memory: WAIT and WAITAOF cover the writes of their own connection only, and
-- the first run may have come over another one.
local function cover()
    redis.call("PEXPIRE", aggregate, 3600000)
    redis.call("PERSIST", aggregate)
end

if actual > expected then
    local stands = redis.call("LRANGE", aggregate, expected, expected + count - 1)
    local entry, id = string.match(stands[1], "^(%S+) (%S+) ")
    if id == commit then
        local reply = { "=" }
        for i, element in ipairs(stands) do
            entry, id = string.match(element, "^(%S+) (%S+) ")
            if id == commit then
                reply[i + 1] = entry
            end
        end
        cover()
        return reply
    end
end
if answer then
    cover()
    local left_ms = redis.call("PTTL", answered) -- the answer may be one of another aggregate
    if left_ms > 0 then
        redis.call("PEXPIRE", answered, left_ms)
    end
    return { "a", answer }
end
if actual ~= expected then
    return { "v", actual }
end
if limit > 0 and size + waiting + count > limit then
    return { "f" }
end

-- Takes back what was written. Nobody has seen it: a script runs alone.
local reply, elements = { "+" }, {}
local function undo(failed)
    if redis.call("LLEN", aggregate) > expected then
        redis.call("RPOP", aggregate, count)
    end
    if #reply > 1 then
        redis.call("XDEL", stream, unpack(reply, 2))
    end
    return failed
end

-- Out of memory, read-only or short of replicas, Redis refuses the first write and none after it. What may fail later
-- is an XADD to a stream at its last id, or a command that this user is denied.
local mark, done = " " .. commit .. " ", 0

-- Stores one more event, whose last part comes behind `before_last` in its element. Returns the error, if any.
local function add(fields, before_last)
    local entry = redis.pcall("XADD", stream, "*", unpack(fields))
    if type(entry) == "table" then
        return entry
    end
    done = done + 1
    reply[done + 1], elements[done] = entry, entry .. mark .. before_last .. fields[#fields]
end

-- Stores the further events of a run, which begin there in ARGV, by what the first has. Returns the error, if any, and
-- where they end.
local function add_alike(fields, before_last, events, at)
    local parts, lengths = #fields, {}
    local function length(part) -- to write out a number costs as much as the rest of an element
        local text = lengths[#part] or #part .. ":"
        lengths[#part] = text
        return text
    end
    local front, between = length(fields[1]) .. fields[1], ""
    if parts > 2 then
        local begin = #front + #length(fields[2]) + #fields[2] + 1
        between = string.sub(before_last, begin, #before_last - #length(fields[parts]))
    end
    for _ = 1, events do
        local value = ""
        if parts > 2 then
            fields[2], at = ARGV[at], at + 1
            value = length(fields[2]) .. fields[2]
        end
        fields[parts], at = ARGV[at], at + 1
        local failed = add(fields, front .. value .. between .. length(fields[parts]))
        if failed then
            return failed
        end
    end
    return nil, at
end

at = 7
while done < count do
    local events, parts = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local fields, before_last = { unpack(ARGV, at + 2, at + 1 + parts) }, ARGV[at + 2 + parts]
    at = at + 3 + parts
    local failed = add(fields, before_last)
    if not failed and events > 1 then
        failed, at = add_alike(fields, before_last, events - 1, at)
    end
    if failed then
        return undo(failed)
    end
end
local pushed = redis.pcall("RPUSH", aggregate, unpack(elements))
if type(pushed) == "table" then
    return undo(pushed)
end
if ttl_ms > 0 then
    local kept = redis.pcall("SET", answered, ARGV[4], "PX", ttl_ms)
    if kept.err then
        return undo(kept)
    end
end
return reply
