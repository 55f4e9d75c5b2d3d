-- Permits to start events of one group, shared by all its workers: so many at once, so many per time.
--
-- KEYS[1] streamlib:limit:<topic>:<group>: "tat" -> when the next start is due at the earliest, us of server time;
--         "w:<worker id>" -> its last number, permits held, until when (ms), permits it waits for, since (us), until (ms)
-- ARGV[1] worker id
-- ARGV[2] number of this request, higher than of any before; 0 only keeps what this worker holds for another lease
-- ARGV[3] permits in use
-- ARGV[4] permits wanted beside them; all others are given back
-- ARGV[5] start times that this worker has and did not use
-- ARGV[6] lease, ms: what a worker holds is free again when it has not asked for so long
-- ARGV[7] permits at once over all workers, 0 for any number
-- ARGV[8] us from one start to the next, 0 for no rate
-- ARGV[9] how far ahead start times are given away, us
--
-- Returns permits granted, start times granted, us until the first of them (each next follows after ARGV[8]), ms until
-- asking again may help, and how many other workers wait. Nil when a later request of this worker came first.
-- Numbers held are absolute and the caller numbers every try: sent twice it may skip start times, never grant too many.
--
-- The rate is GCRA, the "virtual scheduling" form of ITU-T I.371 (ATM traffic control) without tolerance: `tat` is the
-- theoretical arrival time. Who waits longer goes first; a worker that got a part waits anew, at the end.

local kind = redis.call("TYPE", KEYS[1]).ok
if kind ~= "none" and kind ~= "hash" then
    return redis.error_reply("WRONGTYPE " .. KEYS[1] .. " is a " .. kind)
end

local worker, number, busy, want = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local slots_left, lease_ms, at_once = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local interval_us, horizon_us = tonumber(ARGV[8]), tonumber(ARGV[9])
local MARK_MS, POLL_MS, LAST_POLL_MS = 500, 10, 200
local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function text(...)
    local parts = {}
    for i, value in ipairs({ ... }) do
        parts[i] = string.format("%.0f", value)
    end
    return table.concat(parts, " ")
end

local function parse(entry)
    local found = {}
    for part in string.gmatch(entry, "%S+") do
        found[#found + 1] = tonumber(part)
    end
    return { number = found[1], held = found[2], lease = found[3], want = found[4], since = found[5], mark = found[6] }
end

local tat, mine, others, gone = 0, nil, {}, {}
local stored = redis.call("HGETALL", KEYS[1])
for i = 1, #stored, 2 do
    local field = stored[i]
    if field == "tat" then
        tat = tonumber(stored[i + 1])
    elseif field == "w:" .. worker then
        mine = parse(stored[i + 1])
    else
        local other = parse(stored[i + 1])
        if other.lease <= now and other.mark <= now then
            gone[#gone + 1] = field
        else
            others[#others + 1] = other
        end
    end
end

if number == 0 then
    if mine then
        local kept = text(mine.number, mine.held, now + lease_ms, mine.want, mine.since, mine.mark)
        redis.call("HSET", KEYS[1], "w:" .. worker, kept)
    end
    return {}
elseif mine and mine.number >= number then
    return nil
end

local since = mine and mine.want > 0 and mine.mark > now and mine.since or now_us
local held, ahead, waiting = 0, 0, 0
for _, other in ipairs(others) do
    held = held + (other.lease > now and other.held or 0)
    if other.want > 0 and other.mark > now then
        waiting = waiting + 1
        ahead = ahead + (other.since < since and other.want or 0)
    end
end

local granted = want
if at_once > 0 then
    granted = math.min(granted, math.max(at_once - held - busy - ahead, 0))
end
local first, slots = 0, 0
if interval_us > 0 then
    if tat > now_us + horizon_us + 2 * interval_us then
        tat = now_us + interval_us -- the clock went back (another primary), or the rate was another one
    end
    first = math.max(tat, now_us)
    local open = math.floor((now_us + horizon_us - first) / interval_us) + 1
    granted = math.min(granted, slots_left + math.max(open - ahead, 0))
    slots = math.max(granted - slots_left, 0)
    tat = first + slots * interval_us
end

local again_ms = math.min(POLL_MS * (1 + waiting), LAST_POLL_MS)
if granted < want and interval_us > 0 then
    again_ms = math.max(again_ms, math.ceil((tat - horizon_us - now_us) / 1000))
end
if granted > 0 then
    since = now_us
end
local missing = want - granted
if at_once > 0 and busy + granted > 0 or missing > 0 then
    local mark = missing > 0 and now + again_ms * 2 + MARK_MS or 0
    local lease = at_once > 0 and busy + granted > 0 and now + lease_ms or 0
    redis.call("HSET", KEYS[1], "w:" .. worker, text(number, busy + granted, lease, missing, since, mark))
elseif mine then
    redis.call("HDEL", KEYS[1], "w:" .. worker)
end
if slots > 0 then
    redis.call("HSET", KEYS[1], "tat", string.format("%.3f", tat))
end
if #gone > 0 then
    redis.call("HDEL", KEYS[1], unpack(gone, 1, math.min(#gone, 1000)))
end
local lasting_ms = math.max(lease_ms, (tat - now_us) / 1000, again_ms * 2) + 60000
redis.call("PEXPIRE", KEYS[1], string.format("%.0f", lasting_ms))
return { granted, slots, math.max(math.ceil(first - now_us), 0), again_ms, waiting }
