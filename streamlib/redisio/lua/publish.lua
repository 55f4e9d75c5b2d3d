-- Publishes one batch to one partition, once, however often the same batch is sent.
--
-- KEYS[1]      the stream S
-- KEYS[2]      {S}:producers
-- KEYS[3]      {S}:later
-- KEYS[4]      {S}:laterbody
-- KEYS[5..n+4] {S}:dedup:<event id>, one per event, only with a dedup window
-- ARGV[1]      producer id
-- ARGV[2]      sequence: one more than in the producer's last batch for this stream
-- ARGV[3]      limits.topic_len, 0 for none
-- ARGV[4]      dedup window, ms, 0 for none
-- ARGV[5]      number of events n
-- ARGV[6...]   the events, in runs with the same field names. A run: how many events, how many names, the names. Then each
--              of its events: the digest of its content (only with a dedup window) and the values of the fields. A run
--              of delayed events has 0 names; the values are the delay in ms, the id, and the fields packed for
--              promote_later.lua
--
-- Returns one word per event, joined by spaces: "<entry id>" added, "@<ms>" delayed until then, "=<word>" a copy of that
-- one, "#<word>" that one has the same event id and another content, "F" no room left, "!<why>" refused by the stream.
-- Events are admitted in order until the stream is full; delayed ones take room too. A delayed event whose id waits
-- already is a copy: the first keeps its time. Sent twice it answers the same and adds nothing; a batch older than the
-- last one of this producer gets nil: it was overtaken, its answer is gone.

local stream, producers, later, bodies = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local sequence, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local window_ms, count = tonumber(ARGV[4]), tonumber(ARGV[5])
local wrong

-- Looks at a key; if it cannot, `wrong` tells why. Redis says of a key of another type that it is one, but not which.
local function look(command, key, ...)
    local found = redis.pcall(command, key, ...)
    if type(found) == "table" then
        local is_type = string.find(found.err, "WRONGTYPE", 1, true)
        wrong = is_type and redis.error_reply("WRONGTYPE " .. key .. " is a " .. redis.call("TYPE", key).ok) or found
        return false
    end
    return found
end

local last = look("HGET", producers, ARGV[1])
if last then
    local last_sequence, answer = string.match(last, "^(%d+) %d+ (.*)$")
    if tonumber(last_sequence) == sequence then
        -- A write that changes nothing and needs no memory: WAIT and WAITAOF cover the writes of their own connection
        -- only, and the first run may have come over another one.
        redis.call("PEXPIRE", producers, 3600000)
        redis.call("PERSIST", producers)
        return answer
    elseif tonumber(last_sequence) > sequence then
        return nil
    end
end

-- Look at everything first: once something is written, nothing may fail.
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = look("XLEN", stream)
local waiting = limit > 0 and look("ZCARD", later) or 0
if wrong then
    return wrong
end
local room = limit > 0 and limit - stored - waiting or count
local words, values, names_of, digests, twins, known = {}, {}, {}, {}, {}, {}
local at, left, names, names_at = 6, 0, 0, 0
local any_delayed = false
for i = 1, count do
    if left == 0 then
        left, names, names_at = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), at + 2
        at = names_at + names
    end
    left = left - 1
    local key = window_ms > 0 and KEYS[i + 4]
    if key then
        digests[i] = ARGV[at]
        at = at + 1
    end
    values[i], names_of[i] = at, names > 0 and names_at
    local due
    if names > 0 then
        at = at + names
    else
        any_delayed = true
        due = look("ZSCORE", later, ARGV[at + 1])
        at = at + 3
    end
    local first = key and known[key]
    if key and not first then
        local copy = look("GET", key)
        if copy then
            local digest, entry = string.match(copy, "^(%x*):(.*)$")
            first = { digest = digest, entry = entry }
            known[key] = first
        end
    end
    if first then
        twins[i] = first
        words[i] = first.digest == digests[i] and "=" or "#"
    elseif due then
        words[i] = string.format("=@%.0f", due)
    elseif room <= 0 then
        words[i] = "F"
    else
        room = room - 1
        if key then
            known[key] = { digest = digests[i], index = i }
        end
    end
end
if any_delayed then
    look("HLEN", bodies)
end
if wrong then
    return wrong
end

local fields, fields_at, due_of = {}, 0, {}

-- Adds the event whose names and values begin there in ARGV.
local function add(first_name, first_value)
    local n = tonumber(ARGV[first_name - 1])
    if fields_at ~= first_name then -- else they are those of the event before
        for j = 1, n do
            fields[2 * j - 1] = ARGV[first_name + j - 1]
        end
        fields_at = first_name
    end
    for j = 1, n do
        fields[2 * j] = ARGV[first_value + j - 1]
    end
    return redis.pcall("XADD", stream, "*", unpack(fields, 1, 2 * n))
end

-- Lets the delayed event whose three values begin there wait.
local function delay(first_value)
    local delay_ms, event_id, body = tonumber(ARGV[first_value]), ARGV[first_value + 1], ARGV[first_value + 2]
    if due_of[event_id] then
        return "=@" .. due_of[event_id]
    end
    local kept = redis.pcall("HSET", bodies, event_id, body)
    if type(kept) == "table" then
        return kept
    end
    local due = string.format("%.0f", now + delay_ms + 1) -- `now` was cut off to ms: one more, it is never early
    redis.call("ZADD", later, due, event_id)
    due_of[event_id] = due
    return "@" .. due
end

local added = 0
for i = 1, count do
    local twin = twins[i]
    if twin and twin.index then
        local word = words[twin.index]
        words[i] = string.find(word, "^[%d@]") and words[i] .. word or word
    elseif twin then
        words[i] = words[i] .. twin.entry
    elseif not words[i] then
        local entry = names_of[i] and add(names_of[i], values[i]) or delay(values[i])
        if type(entry) ~= "table" then
            words[i] = entry
            added = added + 1
            if window_ms > 0 then
                redis.call("SET", KEYS[i + 4], digests[i] .. ":" .. entry, "PX", window_ms)
            end
        elseif added == 0 then
            return entry
        else
            words[i] = "!" .. string.gsub(entry.err, "%s+", "_")
        end
    end
end

local answer = table.concat(words, " ")
redis.call("HSET", producers, ARGV[1], string.format("%s %.0f %s", ARGV[2], now, answer))
return answer
