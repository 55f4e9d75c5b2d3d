-- Copies a batch of a topic's entries into the stream that one group reads again: a step of a replay of a range.
--
-- KEYS[1]      S
-- KEYS[2]      {S}:again:<group>
-- KEYS[3]      {S}:retry:<group>
-- KEYS[4]      {S}:replay:<group>: how far the run has come on this partition, and its totals
-- KEYS[5]      {S}:done:<group>: it exists where done marks are members of sets
-- KEYS[6..n+5] {S}:idem:<group>:<event id>, one per event
-- KEYS[n+6..]  per event the sets that may hold its done mark, one per segment of the plan
-- ARGV[1]      group
-- ARGV[2]      number of the run; a later run of the group has a greater one
-- ARGV[3]      id of the entry behind which this batch begins, "" at the start of the range
-- ARGV[4]      id of the last entry that was looked at for this batch
-- ARGV[5]      idempotency window, ms
-- ARGV[6]      how long the progress is kept, ms
-- ARGV[7]      "1" to look only: nothing is written
-- ARGV[8..11]  entries that were left out: filtered, foreign, not_delivered, copies
-- ARGV[12]     the plan of the sets of done marks as the asker knows it
-- then per event: its entry id, its event id, the digest of that, the body of its entry of `again`
--
-- Returns, when it is only to look, 1 and a code per event:
--   0 replayed  it has ended as done, or nothing is known of it: it would be copied
--   1 busy      claimed, or delivered and not acknowledged: it runs anyway
--   2 waiting   it comes again anyway
--   3 dead      among the dead letters, which have a way out of their own
-- else 1, the position, and the totals of the run on this partition in the order of NAMES below;
-- or 0 and the same, when the run stands at another position: nothing was written;
-- or 2 and the plan that stands, where the asker knows another one: nothing was written;
-- or the empty list when a later run has taken over: nothing was written.
-- Sent twice it answers the same: the position is at the end of this batch then, and the totals are those of the first.
-- XADD is the first write (HSET where nothing is copied): when Redis is full nothing has happened.

local NAMES = { "replayed", "busy", "waiting", "dead", "filtered", "foreign", "not_delivered", "copies" }
local REPLAYED, BUSY, WAITING, DEAD = 0, 1, 2, 3
local S, AGAIN, RETRY, PROGRESS, MARKS, FIRST_KEY = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], 6
local FIRST_EVENT, PER_EVENT = 13, 4
local group, run, behind, upto, looking = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[7] == "1"
for i, wanted in ipairs({ "stream", "stream", "zset", "hash" }) do
    local kind = redis.call("TYPE", KEYS[i]).ok
    if kind ~= "none" and kind ~= wanted then
        return redis.error_reply("WRONGTYPE " .. KEYS[i] .. " is a " .. kind)
    end
end

local totals, position = {}, behind
for i = 1, #NAMES do
    totals[i] = 0
end

local function answer(code)
    local found = { code, position }
    for i = 1, #NAMES do
        found[i + 2] = totals[i]
    end
    return found
end

if not looking then
    local stored = redis.call("HMGET", PROGRESS, "run", "position", unpack(NAMES))
    local stands = tonumber(stored[1] or 0)
    if stands > run then
        return {}
    elseif stands == run then -- else it is the first batch here; what an earlier run has left counts no more
        position = stored[2]
        for i = 1, #NAMES do
            totals[i] = tonumber(stored[i + 2])
        end
        if position == upto or position ~= behind then
            return answer(position == upto and 1 or 0)
        end
    end
end

local plan = redis.call("HGET", MARKS, "plan") or ""
if plan ~= ARGV[12] then
    return { 2, plan }
end
local count = (#ARGV - FIRST_EVENT + 1) / PER_EVENT
local segments = count > 0 and (#KEYS - FIRST_KEY + 1 - count) / count or 0

local function state_of(i, digest)
    local state = redis.call("GET", KEYS[FIRST_KEY + i - 1])
    local first = FIRST_KEY + count + (i - 1) * segments
    for at = first, state and 0 or first + segments - 1 do
        if redis.call("SISMEMBER", KEYS[at], digest) == 1 then
            return "d"
        end
    end
    return state
end

local function decide(state, entry_id, event_id)
    if not state then
        if #redis.call("XPENDING", S, group, entry_id, entry_id, 1) > 0 then
            return BUSY -- read, but not claimed yet
        end
        return redis.call("ZSCORE", RETRY, event_id) and WAITING or REPLAYED
    elseif state == "d" then
        return REPLAYED
    elseif state == "x" then
        return DEAD
    end
    return string.sub(state, 1, 1) == "c" and BUSY or WAITING
end

local codes = {}
for i = 1, count do
    local at = FIRST_EVENT + (i - 1) * PER_EVENT
    codes[i] = decide(state_of(i, ARGV[at + 2]), ARGV[at], ARGV[at + 1])
end
if looking then
    return { 1, unpack(codes) }
end

local remembered_ms = ARGV[5]
if plan ~= "" then -- the old done mark, which counts where no key tells more, must not outlive it
    remembered_ms = string.format("%.0f", 2 * ARGV[5])
end
for i, code in ipairs(codes) do
    if code == REPLAYED then
        local at = FIRST_EVENT + (i - 1) * PER_EVENT
        redis.call("XADD", AGAIN, "*", "id", ARGV[at + 1], "body", ARGV[at + 3])
        redis.call("SET", KEYS[FIRST_KEY + i - 1], "r", "PX", remembered_ms)
    end
    totals[code + 1] = totals[code + 1] + 1
end
position = upto
local written = { "run", ARGV[2], "position", upto }
for i, name in ipairs(NAMES) do
    if i > 4 then
        totals[i] = totals[i] + tonumber(ARGV[i + 3])
    end
    written[#written + 1] = name
    written[#written + 1] = string.format("%.0f", totals[i])
end
redis.call("HSET", PROGRESS, unpack(written))
redis.call("PEXPIRE", PROGRESS, ARGV[6])
return answer(1)
