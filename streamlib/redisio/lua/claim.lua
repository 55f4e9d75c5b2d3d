-- Claims the idempotency keys of a batch of entries of one partition and group, before any of them runs.
--
-- KEYS[1]      {S}:suspect:<group>
-- KEYS[2]      {S}:owner:<group>
-- KEYS[3..n+2] {S}:idem:<group>:<event id>, one per entry
-- ARGV[1]      worker id
-- ARGV[2]      lease, ms
-- ARGV[3]      idempotency window, ms: how long a claim outlives its worker, as evidence that it was started
-- ARGV[4]      "suspects" to take over claims whose deadline has passed, "normal" to leave them
-- ARGV[5]      the epoch in which the worker owns the partition; "0" in groups without owners, where nothing is checked
-- ARGV[6..n+5] entry refs, one per entry: the id of an entry of S, or "a" and the id of an entry of `again`
--
-- Returns a flat list of pairs, one per entry:
--   0, starts  run it; starts > 0 counts the workers that died while they held it
--   1, 0       duplicate: another entry of this event carries on, or the event has ended
--   2, ms      busy: another worker holds this entry for ms more
--   3, 0       suspect: the worker that held this entry let its deadline pass (only in "normal" mode)
-- or the empty list: fenced, another worker or another epoch owns the partition; nothing is written.
-- Sent twice it answers the same: the first run's claims carry our own token. In groups with owners the epoch belongs
-- to it: a claim of ours from an earlier epoch is a suspect at once, for whoever owns a partition again has let all that
-- ran there end, and what became of it was not recorded.

local worker, lease_ms, take_suspects = ARGV[1], tonumber(ARGV[2]), ARGV[4] == "suspects"
if ARGV[5] ~= "0" then
    local owner = redis.call("HMGET", KEYS[2], "owner", "epoch")
    if owner[1] ~= worker or owner[2] ~= ARGV[5] then
        return {}
    end
end
local me = ARGV[5] == "0" and worker or worker .. "@" .. ARGV[5]
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline, expire_ms = string.format("%.0f", now + lease_ms), lease_ms * 10 + tonumber(ARGV[3])

local kind = redis.call("TYPE", KEYS[1]).ok
if kind ~= "none" and kind ~= "hash" then
    return redis.error_reply("WRONGTYPE " .. KEYS[1] .. " is a " .. kind)
end

local answer = {}
for i = 3, #KEYS do
    local ref = ARGV[i + 3]
    local state = redis.call("GET", KEYS[i])
    local code, number = 1, 0
    if not state or state == "h" .. ref or (state == "r" and string.sub(ref, 1, 1) == "a") then
        code = 0
    elseif string.sub(state, 1, 1) == "c" then
        local ends, holder, held = string.match(state, "^c(%d+):([^:]*):(.*)$")
        if held == ref and holder == me then
            code, number = 0, tonumber(redis.call("HGET", KEYS[1], ref) or 0)
        elseif held == ref and tonumber(ends) > now and string.match(holder, "^[^@]*") ~= worker then
            code, number = 2, tonumber(ends) - now
        elseif held == ref and not take_suspects then
            code = 3
        elseif held == ref then
            code, number = 0, redis.call("HINCRBY", KEYS[1], ref, 1)
        end
    end
    if code == 0 then
        redis.call("SET", KEYS[i], "c" .. deadline .. ":" .. me .. ":" .. ref, "PX", expire_ms)
    end
    answer[#answer + 1] = code
    answer[#answer + 1] = number
end
return answer
