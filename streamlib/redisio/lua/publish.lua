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
-- ARGV[6...]   per event: the digest of its content (only with a dedup window), its delay in ms (0 for none), the number
--              of its parts, the parts: its fields, or with a delay its id and its fields packed for promote_later.lua
--
-- Returns one word per event, joined by spaces: "<entry id>" added, "@<ms>" delayed until then, "=<word>" a copy of that
-- one, "#<word>" that one has the same event id and another content, "F" no room left, "!<why>" refused by the stream.
-- Events are admitted in order until the stream is full; delayed ones take room too. A delayed event whose id waits
-- already is a copy: the first keeps its time. Sent twice it answers the same and adds nothing; a batch older than the
-- last one of this producer gets nil: it was overtaken, its answer is gone.

local stream, producers, later, bodies = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local producer = ARGV[1]
local sequence, limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local window_ms, count = tonumber(ARGV[4]), tonumber(ARGV[5])

for i, wanted in ipairs({ "stream", "hash", "zset", "hash" }) do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if kind ~= "none" and kind ~= wanted then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end

local last = redis.call("HGET", producers, producer)
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
local room = limit > 0 and limit - redis.call("XLEN", stream) - redis.call("ZCARD", later) or count
local words, from, to, digests, delays = {}, {}, {}, {}, {}
local twins, known = {}, {}
local at = 6
for i = 1, count do
    local key = window_ms > 0 and KEYS[i + 4]
    if key then
        digests[i] = ARGV[at]
        at = at + 1
    end
    delays[i] = tonumber(ARGV[at])
    from[i], to[i] = at + 2, at + 1 + tonumber(ARGV[at + 1])
    at = to[i] + 1
    local waiting = delays[i] > 0 and redis.call("ZSCORE", later, ARGV[from[i]])
    local first = key and known[key]
    if key and not first then
        local stored = redis.pcall("GET", key)
        if type(stored) == "table" then
            return redis.error_reply("WRONGTYPE " .. key .. " is no string")
        end
        if stored then
            local digest, entry = string.match(stored, "^(%x*):(.*)$")
            first = { digest = digest, entry = entry }
            known[key] = first
        end
    end
    if first then
        twins[i] = first
        words[i] = first.digest == digests[i] and "=" or "#"
    elseif waiting then
        words[i] = string.format("=@%.0f", waiting)
    elseif room <= 0 then
        words[i] = "F"
    else
        room = room - 1
        if key then
            known[key] = { digest = digests[i], index = i }
        end
    end
end

local due_of = {}

local function delay(event_id, body, delay_ms)
    if due_of[event_id] then
        return "=@" .. due_of[event_id]
    end
    local stored = redis.pcall("HSET", bodies, event_id, body)
    if type(stored) == "table" then
        return stored
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
        local entry
        if delays[i] > 0 then
            entry = delay(ARGV[from[i]], ARGV[to[i]], delays[i])
        else
            entry = redis.pcall("XADD", stream, "*", unpack(ARGV, from[i], to[i]))
        end
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
redis.call("HSET", producers, producer, string.format("%s %.0f %s", ARGV[2], now, answer))
return answer
