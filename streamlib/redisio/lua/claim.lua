-- Claims the idempotency keys of a batch of entries of one partition and group, before any of them runs.
--
-- KEYS[1]      {S}:suspect:<group>
-- KEYS[2]      {S}:owner:<group>
-- KEYS[3]      {S}:done:<group>
-- KEYS[4]      {S}:again:<group>
-- KEYS[5..n+4] {S}:idem:<group>:<event id>, one per entry
-- KEYS[n+5..]  where done marks are members: per entry {S}:done:<group>:<segment>:<shard> of each segment of the plan
-- ARGV[1]      worker id
-- ARGV[2]      lease, ms
-- ARGV[3]      idempotency window, ms: how long a claim outlives its worker, as evidence that it was started
-- ARGV[4]      "suspects" to take over claims whose deadline has passed, "normal" to leave them
-- ARGV[5]      the epoch in which the worker owns the partition; "0" in groups without owners, where nothing is checked
-- ARGV[6]      n
-- ARGV[7]      "members" where done marks are members of sets, "keys" where they are keys of their own
-- ARGV[8]      the plan of these sets as the asker knows it
-- ARGV[9..n+8] entry refs, one per entry: the id of an entry of S, or "a" and the id of an entry of `again`
-- ARGV[n+9..]  where done marks are members: the digests of the events' ids
--
-- Returns 1, and three numbers for each entry that is not simply to be run: its place (from 1), and
--   0, starts  run it; starts > 0 counts the workers that died while they held it
--   1, 0       duplicate: another entry of this event carries on, or the event has ended; or this is an entry of `again`
--              that somebody has settled since it was read, and another one comes in its place
--   2, ms      busy: another worker holds this entry for ms more
--   3, 0       suspect: the worker that held this entry let its deadline pass (only in "normal" mode)
-- or the empty list: fenced, another worker or another epoch owns the partition; nothing is written;
-- or 2 and the plan that stands, where the asker knows another one; nothing is written;
-- or 3: some worker keeps done marks as members, the asker would not see them; nothing is written.
-- Sent twice it answers the same: the first run's claims carry our own token. In groups with owners the epoch belongs
-- to it: a claim of ours from an earlier epoch is a suspect at once, for whoever owns a partition again has let all that
-- ran there end, and what became of it was not recorded.

local SUSPECT, OWNER, MARKS, AGAIN, BEFORE_IDEM, BEFORE_REFS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], 4, 8
local RUN, DUPLICATE, BUSY, IS_SUSPECT = 0, 1, 2, 3
local worker, lease_ms, take_suspects = ARGV[1], tonumber(ARGV[2]), ARGV[4] == "suspects"
if ARGV[5] ~= "0" then
    local owner = redis.call("HMGET", OWNER, "owner", "epoch")
    if owner[1] ~= worker or owner[2] ~= ARGV[5] then
        return {}
    end
end
local count, are_members = tonumber(ARGV[6]), ARGV[7] == "members"
if are_members then
    local plan = redis.call("HGET", MARKS, "plan") or ""
    if plan ~= ARGV[8] then
        return { 2, plan }
    end
elseif redis.call("EXISTS", MARKS) == 1 then
    return { 3 }
end
local me = ARGV[5] == "0" and worker or worker .. "@" .. ARGV[5]
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed = string.format("c%.0f:%s:", now + lease_ms, me)
local expires = string.format("%.0f", now + lease_ms * 10 + tonumber(ARGV[3]))
local has_msetex = (redis.VALKEY_VERSION_NUM or 0) >= 0x090100 or (redis.REDIS_VERSION_NUM or 0) >= 0x080400

local kind = redis.call("TYPE", SUSPECT).ok
if kind ~= "none" and kind ~= "hash" then
    return redis.error_reply("WRONGTYPE " .. SUSPECT .. " is a " .. kind)
end

-- Nearly always every event is new. Then all of them are claimed without a look; else nothing is written.
local function claim_all_as_new()
    local all, seen = {}, {}
    for i = 1, count do
        local key = KEYS[BEFORE_IDEM + i]
        if seen[key] then
            return false
        end
        seen[key], all[2 * i - 1], all[2 * i] = true, key, claimed .. ARGV[BEFORE_REFS + i]
    end
    all[2 * count + 1], all[2 * count + 2], all[2 * count + 3] = "NX", "PXAT", expires
    return redis.pcall("MSETEX", count, unpack(all)) == 1 -- a user may lack the right to a command that is so new
end

if has_msetex and not are_members and claim_all_as_new() then
    return { 1 }
end

-- Whether this is an entry of `again` that is still there. A run of one that is not could leave nothing behind.
local function still_comes(ref)
    local id = string.match(ref, "^a(.*)$")
    return id and #redis.call("XRANGE", AGAIN, id, id) > 0
end

-- What becomes of an entry whose event is known: one of the codes above and its number.
local function decide(state, ref)
    if state == "h" .. ref or (state == "r" and still_comes(ref)) then
        return RUN, 0
    elseif string.sub(state, 1, 1) ~= "c" then
        return DUPLICATE, 0
    end
    local ends, holder, held = string.match(state, "^c(%d+):([^:]*):(.*)$")
    if held ~= ref then
        return DUPLICATE, 0
    elseif holder == me then
        return RUN, tonumber(redis.call("HGET", SUSPECT, ref) or 0)
    elseif tonumber(ends) > now and string.match(holder, "^[^@]*") ~= worker then
        return BUSY, tonumber(ends) - now
    elseif not take_suspects then
        return IS_SUSPECT, 0
    end
    return RUN, redis.call("HINCRBY", SUSPECT, ref, 1)
end

-- Whether an event of which no key tells has ended: where done marks are members.
local segments = (#KEYS - BEFORE_IDEM - count) / count
local function is_done(i)
    local first = BEFORE_IDEM + count + (i - 1) * segments
    for at = first + 1, first + segments do
        if redis.call("SISMEMBER", KEYS[at], ARGV[BEFORE_REFS + count + i]) == 1 then
            return true
        end
    end
end

local answer, taken, new, known = { 1 }, {}, {}, 0
local states = (has_msetex or are_members) and redis.call("MGET", unpack(KEYS, BEFORE_IDEM + 1, BEFORE_IDEM + count))
for i = 1, count do
    local key, ref = KEYS[BEFORE_IDEM + i], ARGV[BEFORE_REFS + i]
    local value = claimed .. ref
    local state
    if states then
        state = taken[key] or states[i] or (segments > 0 and is_done(i) and "d")
    else
        state = redis.call("SET", key, value, "NX", "GET", "PXAT", expires)
    end
    if state then
        local code, number = decide(state, ref)
        if code == RUN and not taken[key] then
            redis.call("SET", key, value, "PXAT", expires)
            taken[key] = value
        end
        if code ~= RUN or number > 0 then
            local last = #answer
            answer[last + 1], answer[last + 2], answer[last + 3] = i, code, number
        end
    elseif states then
        taken[key], known = value, known + 1
        new[2 * known - 1], new[2 * known] = key, value
    end
end

local refused, written = false, nil
if has_msetex and known > 0 then
    local last = 2 * known
    new[last + 1], new[last + 2], new[last + 3] = "NX", "PXAT", expires
    written = redis.pcall("MSETEX", known, unpack(new)) -- a user may lack the right to a command that is so new
    refused = written == 0
end
if type(written) ~= "number" then
    for i = 1, 2 * known, 2 do
        refused = not redis.call("SET", new[i], new[i + 1], "NX", "PXAT", expires) or refused
    end
end
if refused then
    return redis.error_reply("WRONGTYPE an idempotency key holds something else than a string")
end
return answer
