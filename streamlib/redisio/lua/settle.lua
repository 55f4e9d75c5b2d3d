-- Ends the runs of a batch of entries of one partition and group: every effect of an outcome and its ack, together.
--
-- KEYS[1]      S
-- KEYS[2]      {S}:again:<group>
-- KEYS[3]      {S}:retry:<group>
-- KEYS[4]      {S}:retrybody:<group>
-- KEYS[5]      {S}:dead:<group>
-- KEYS[6]      {S}:suspect:<group>
-- KEYS[7]      {S}:owner:<group>
-- KEYS[8]      {S}:keys:<group>
-- KEYS[9]      {S}:done:<group>
-- KEYS[10..]   {S}:idem:<group>:<event id>, one per outcome; then the same of each successor that is named below, in their
--              order; then, where done marks are members, per outcome its sets in the segments of the plan that are given
-- ARGV[1]      group
-- ARGV[2]      worker id
-- ARGV[3]      idempotency window, ms
-- ARGV[4]      "1" when these outcomes were sent before and the reply was lost
-- ARGV[5]      the epoch in which the worker owns the partition; "0" in groups without owners, where nothing is checked
-- ARGV[6]      lease of a claim on a successor, ms
-- ARGV[7]      "members" where done marks are members of sets, "keys" where they are keys of their own
-- ARGV[8]      the plan of these sets as the asker knows it: "<opened, ms>.<shards>" per segment, oldest first
-- ARGV[9]      the count of segments given for each outcome, the last one among them; marks go to that one
-- ARGV[10]     the count of outcomes
-- ARGV[11]     how many of the outcomes, the first ones, are plain: "done" with no parts and no successor, of an entry of
--              S, in a group without owners
-- then per plain outcome: the entry's ref
-- then per other outcome: kind, entry ref, the event's key, its successor, a number, the count of parts, the parts; the
-- successor is "" or the ref of the entry that is to be claimed once this outcome is recorded
-- then, where done marks are members, per outcome the digest of its event's id
--   ack    -            nothing to record: a duplicate or a type that the group skips
--   done   -            parts: per emitted event the count of its fields and the fields
--   retry  delay in ms  parts: event id, body
--   back   -            parts: event id, body; hands a claimed entry back
--   return -            parts: event id, body; hands an entry back that was never claimed
--   dead   -            parts: the dead letter's fields
--   hold   delay in ms  stays pending with its owner, who runs it again then; -1 halts its key. Parts: attempts, since
--                       when it is parked (ms), a text; with no parts nothing is noted about the key
--
-- Returns 1, and two numbers for each outcome that did not simply settle: its place (from 1), and
--   0  the lease was lost and nothing was written for it
--   2  settled, and its successor is claimed
-- or the empty list: fenced, another worker or another epoch owns the partition and nothing was written at all;
-- or {2, plan} when done marks go by another plan than the asker knows: of what was asked nothing was written.
-- A successor is claimed only where nothing is known of it but that it waits, or by our own first try; claim.lua tells
-- the rest.
-- Sent twice (ARGV[4]), an outcome that finds the state its kind writes counts as settled and is not written again.
-- A key of the wrong type stops the outcomes that need it, before the first write.
-- XACK (or HDEL, where nothing is acknowledged) is the first write, so that memory can be freed when Redis is full.
-- Nearly every outcome is plain: all of them are looked up, acknowledged and, where the server can, marked by one command.

local S, AGAIN, RETRY, BODY, DEAD, SUSPECT = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local OWNER, STATES, MARKS = KEYS[7], KEYS[8], KEYS[9]
local group, worker, window_ms, resent = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == "1"
local BEFORE_IDEM, BEFORE_REFS = 9, 11
local SEGMENTS, MEMBERS, FULL, GROWTH = 4, 80, 1.2, 16 -- of a window; of a set; of what was planned; of a plan
local MOST_FIELDS = 7000 -- names and values that unpack() can hand to one XADD
local WRITES = { done = "d", retry = "r", back = "r", ["return"] = "r", dead = "x" }
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch, lease_ms = ARGV[5], tonumber(ARGV[6])
local are_members, segments = ARGV[7] == "members", tonumber(ARGV[9])
local total, plain = tonumber(ARGV[10]), tonumber(ARGV[11])
local has_msetex = (redis.VALKEY_VERSION_NUM or 0) >= 0x090100 or (redis.REDIS_VERSION_NUM or 0) >= 0x080400
local me = epoch == "0" and worker or worker .. "@" .. epoch
if epoch ~= "0" then
    local owner = redis.call("HMGET", OWNER, "owner", "epoch")
    if owner[1] ~= worker or owner[2] ~= epoch then
        return {}
    end
end

local span_ms = math.floor(window_ms / SEGMENTS)
local lasting_ms = string.format("%.0f", window_ms + span_ms)

-- The plan that stands. Its last segment takes marks until it is full or has lasted a quarter of the window; then the next
-- one is opened, with sets for as many marks as its time will bring at the rate of the last.
local function plan_now()
    local stored = redis.call("HMGET", MARKS, "plan", "count")
    local kept, opened, shards = {}, 0, 0
    for at, sets in string.gmatch(stored[1] or "", "(%d+)%.(%d+)") do
        at, sets = tonumber(at), tonumber(sets)
        if opened > 0 and at + window_ms > now then -- a segment takes no marks any more once the next one is opened
            kept[#kept + 1] = string.format("%.0f.%d", opened, shards)
        end
        opened, shards = at, sets
    end
    local count = tonumber(stored[2] or 0)
    if opened > 0 and now < opened + span_ms and count < shards * MEMBERS * FULL then
        return stored[1]
    end
    local wanted = 16
    if opened > 0 then
        kept[#kept + 1] = string.format("%.0f.%d", opened, shards)
        local rate = count / math.max(now - opened, 1)
        wanted = math.max(math.min(math.ceil(rate * span_ms / MEMBERS), shards * GROWTH), 1)
    end
    kept[#kept + 1] = string.format("%.0f.%d", math.max(now, opened + 1), wanted)
    local plan = table.concat(kept, " ")
    local set = redis.pcall("HSET", MARKS, "plan", plan, "count", 0)
    if type(set) == "table" and set.err then -- Redis is full: what was planned goes on
        return stored[1] or ""
    end
    redis.call("PEXPIRE", MARKS, lasting_ms)
    return plan
end

if are_members then
    local plan = plan_now()
    if plan ~= ARGV[8] then
        return { 2, plan }
    end
end

local function is_again(ref)
    return string.sub(ref, 1, 1) == "a"
end

local function entry_id(ref)
    return is_again(ref) and string.sub(ref, 2) or ref
end

-- What to do with an outcome: "write" it, only "ack" the entry, count it as "settled", or "lost".
local function decide(kind, ref, state)
    if kind == "ack" then
        return "ack"
    elseif kind == "return" then
        local held = state and string.match(state, "^c%d+:[^:]*:(.*)$")
        if held == ref then
            return "lost" -- another worker has claimed this very entry: it settles it
        elseif is_again(ref) then
            local still = #redis.call("XRANGE", AGAIN, entry_id(ref), entry_id(ref)) > 0
            return still and (state == "r" or not state) and "write" or "ack"
        end
        return state and "ack" or "write"
    end
    if state then
        local holder, held = string.match(state, "^c%d+:([^:]*):(.*)$")
        if holder == me and held == ref then
            return "write"
        elseif resent and kind == "hold" then
            return state == "h" .. ref and "settled" or "lost"
        elseif resent and (state == WRITES[kind] or (WRITES[kind] == "r" and held ~= ref)) then
            return "settled" -- what was to come again may have come, and ended, since our first try
        end
    end
    return "lost"
end

local needed = { [SUSPECT] = "hash" }

-- Notes which keys an outcome writes, each with its type; false when Lua could not pass on so many fields.
local function note_needs(one)
    needed[is_again(one.ref) and AGAIN or S] = "stream"
    if one.verdict == "ack" then
        return true
    elseif one.kind == "hold" then
        needed[STATES] = "hash"
    elseif one.kind == "retry" then
        needed[RETRY], needed[BODY] = "zset", "hash"
    elseif one.kind == "dead" then
        needed[DEAD] = "stream"
        return one.count <= MOST_FIELDS
    elseif one.kind ~= "done" then
        needed[AGAIN] = "stream"
    elseif one.count > 0 then
        needed[S] = "stream"
        local first = one.first
        while first < one.first + one.count do
            local fields = tonumber(ARGV[first])
            if fields > MOST_FIELDS then
                return false
            end
            first = first + 1 + fields
        end
    end
    return true
end

local states = redis.call("MGET", unpack(KEYS, BEFORE_IDEM + 1))
local outcomes, ended = {}, {}
local args = are_members and #ARGV - total or #ARGV
local first_set = #KEYS - total * segments -- the key before it

local function digest(place)
    return ARGV[args + place]
end

-- The state of an event; where done marks are members they are looked for in the segments given.
local function state_of(place, key)
    local state = states[place] or redis.call("GET", key) -- refuses a key of a wrong type
    for i = 1, state and 0 or segments do
        if redis.call("SISMEMBER", KEYS[first_set + (place - 1) * segments + i], digest(place)) == 1 then
            return "d"
        end
    end
    return state
end

-- Takes an outcome up, decides it; false as above.
local function take(one, place)
    one.place, one.key = place, KEYS[BEFORE_IDEM + place]
    one.verdict = decide(one.kind, one.ref, state_of(place, one.key))
    if one.verdict == "write" and ended[one.key] then
        -- One entry twice in a batch has one outcome; of copies handed back the first carries the event on.
        one.verdict = ended[one.key] == one.ref and "settled" or "ack"
    elseif one.verdict == "write" then
        ended[one.key] = one.ref
    end
    outcomes[#outcomes + 1] = one
    return (one.verdict ~= "write" and one.verdict ~= "ack") or note_needs(one)
end

-- A worker's claims are made many at once: they differ by their refs alone.
local ids, marks, places, known, claimed = {}, {}, {}, 0, ""
local at, place = BEFORE_REFS + plain + 1, plain
local mixed = at <= args
for i = 1, plain do
    local ref, state = ARGV[BEFORE_REFS + i], states[i]
    if state and state ~= claimed .. ref then
        local all_but_ref, holder = string.match(state, "^(c%d+:([^:]*):)")
        claimed = holder == me and all_but_ref or claimed
    end
    if state == claimed .. ref then
        local key = KEYS[BEFORE_IDEM + i]
        known = known + 1
        ids[known], marks[2 * known - 1], marks[2 * known] = ref, key, "d"
        places[known] = i
        if mixed then
            ended[key] = ref
        end
    else
        take({ kind = "done", ref = ref, first = 1, number = 0, count = 0, successor = "" }, i)
    end
end
if #ids > 0 then
    needed[S] = "stream"
end
while at <= args do
    local one = { kind = ARGV[at], ref = ARGV[at + 1], of = ARGV[at + 2], first = at + 6 }
    one.successor, one.number, one.count = ARGV[at + 3], tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    at, place = one.first + one.count, place + 1
    if not take(one, place) then
        return redis.error_reply("ERR an entry of more than " .. MOST_FIELDS .. " names and values: " .. one.ref)
    end
end
local kinds = {}
for name, wanted in pairs(needed) do
    kinds[name] = redis.call("TYPE", name).ok
    if kinds[name] ~= "none" and kinds[name] ~= wanted then
        return redis.error_reply("WRONGTYPE " .. name .. " is a " .. kinds[name])
    end
end
local has_suspects = kinds[SUSPECT] == "hash"
local has_states = epoch ~= "0" and redis.call("EXISTS", STATES) == 1

local again_ids, refs, over = {}, {}, {} -- `refs` of what is not in `ids`: an entry of S has its id as its ref
for _, one in ipairs(outcomes) do
    if one.verdict == "write" or one.verdict == "ack" then
        if one.kind == "hold" then
            has_suspects, refs[#refs + 1] = true, one.ref
        else
            if is_again(one.ref) then
                again_ids[#again_ids + 1], refs[#refs + 1] = entry_id(one.ref), one.ref
            else
                ids[#ids + 1] = one.ref
            end
            local noted = has_states and redis.call("HGET", STATES, one.of)
            if noted and string.match(noted, "^%S+") == one.ref then
                over[#over + 1] = one.of
            end
        end
        if one.verdict == "write" and one.kind == "done" then
            local last = #marks
            marks[last + 1], marks[last + 2] = one.key, "d"
            places[#places + 1] = one.place
        end
    end
end
if #ids > 0 then
    redis.call("XACK", S, group, unpack(ids))
end
if #again_ids > 0 then
    redis.call("XACK", AGAIN, group, unpack(again_ids))
    redis.call("XDEL", AGAIN, unpack(again_ids))
end
for _, some in ipairs(has_suspects and { ids, refs } or {}) do
    if #some > 0 then
        redis.call("HDEL", SUSPECT, unpack(some))
    end
end
if #over > 0 then
    redis.call("HDEL", STATES, unpack(over))
end

local function remember(key, state, ms)
    redis.call("SET", key, state, "PXAT", string.format("%.0f", now + ms))
end

-- Makes a done mark a member of its set; false where that cannot be: it is a key then.
local function add_member(place)
    local set = KEYS[first_set + place * segments]
    local added = redis.pcall("SADD", set, digest(place))
    if type(added) == "table" then
        return false
    end
    redis.call("PEXPIRE", set, lasting_ms)
    return true
end

if are_members and segments > 0 and #places > 0 then
    local over, left = {}, {}
    for _, place in ipairs(places) do
        local key = KEYS[BEFORE_IDEM + place]
        if add_member(place) then
            over[#over + 1] = key
        else
            left[#left + 1], left[#left + 2] = key, "d"
        end
    end
    if #over > 0 then
        redis.call("DEL", unpack(over))
        redis.call("HINCRBY", MARKS, "count", #over)
        redis.call("PEXPIRE", MARKS, lasting_ms)
    end
    marks = left
end
local count, expires = #marks / 2, string.format("%.0f", now + window_ms)
local written
if has_msetex and count > 0 then
    local last = #marks
    marks[last + 1], marks[last + 2] = "PXAT", expires
    written = redis.pcall("MSETEX", count, unpack(marks)) -- a user may lack the right to a command that is so new
end
if type(written) ~= "number" then
    for i = 1, 2 * count, 2 do
        redis.call("SET", marks[i], "d", "PXAT", expires)
    end
end
local answer = { 1 }
local function tell(one, code)
    local last = #answer
    answer[last + 1], answer[last + 2] = one.place, code
end

for _, one in ipairs(outcomes) do
    if one.verdict == "lost" then
        tell(one, 0)
    elseif one.verdict == "write" then
        local first, last = one.first, one.first + one.count - 1
        if one.kind == "done" then
            while first <= last do
                local fields = tonumber(ARGV[first])
                redis.call("XADD", S, "*", unpack(ARGV, first + 1, first + fields))
                first = first + 1 + fields
            end
        elseif one.kind == "retry" then
            remember(one.key, "r", window_ms + one.number)
            redis.call("HSET", BODY, ARGV[first], ARGV[first + 1])
            redis.call("ZADD", RETRY, now + one.number, ARGV[first])
        elseif one.kind == "dead" then
            remember(one.key, "x", window_ms)
            redis.call("XADD", DEAD, "*", unpack(ARGV, first, last))
        elseif one.kind == "hold" then
            remember(one.key, "h" .. one.ref, window_ms + math.max(one.number, 0))
            if one.count > 0 then
                local due = one.number < 0 and "halted" or string.format("%.0f", now + one.number)
                local state = { one.ref, ARGV[first], due, ARGV[first + 1], ARGV[first + 2] }
                redis.call("HSET", STATES, one.of, table.concat(state, " "))
            end
        else
            remember(one.key, "r", window_ms)
            redis.call("XADD", AGAIN, "*", "id", ARGV[first], "body", ARGV[first + 1])
        end
    end
end

-- Whether nothing is known of an entry but that it waits, or that our own first try claimed it.
local function may_claim(ref, state)
    if type(state) == "string" then
        return state == "h" .. ref or string.match(state, "^c%d+:(.*)$") == me .. ":" .. ref
    end
    return not state
end

-- What fails here is left to a claim of its own: the outcomes are recorded.
local claim = string.format("c%.0f:%s:", now + lease_ms, me)
local successor = BEFORE_IDEM + place
for _, one in ipairs(outcomes) do
    if one.successor ~= "" then
        successor = successor + 1
        local counts = one.verdict ~= "lost" and one.kind ~= "hold"
        if counts and may_claim(one.successor, redis.pcall("GET", KEYS[successor])) then
            local set = redis.pcall("SET", KEYS[successor], claim .. one.successor, "PX", lease_ms * 10 + window_ms)
            if set.ok then
                tell(one, 2)
            end
        end
    end
end
return answer
