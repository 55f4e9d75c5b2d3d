-- Renews the claims that a worker holds on entries of one stream, and keeps those entries its own in the pending list.
--
-- KEYS[1]      the stream: S or {S}:again:<group>
-- KEYS[2..n+1] {S}:idem:<group>:<event id>, one per entry
-- ARGV[1]      group
-- ARGV[2]      consumer
-- ARGV[3]      worker id
-- ARGV[4]      lease, ms
-- ARGV[5]      idempotency window, ms: how long a claim outlives its worker
-- ARGV[6..n+5] entry refs, one per entry: the entry id, with an "a" before it in an `again` stream
--
-- Returns the refs whose claim is not ours any more. An expired claim that nobody took is renewed. Of a partition with
-- an owner a claim is renewed in whatever epoch it was made: while its code still runs, no other owner may begin.
-- JUSTID leaves the delivery counter alone. Sent twice it does the same again.

local group, consumer, worker, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expire_ms = lease_ms * 10 + tonumber(ARGV[5])
local deadline = string.format("%.0f", now + lease_ms)

local lost, ours, ids, holders = {}, {}, {}, {}
for i = 2, #KEYS do
    local ref = ARGV[i + 4]
    local state = redis.call("GET", KEYS[i])
    local holder, held
    if state then
        holder, held = string.match(state, "^c%d+:([^:]*):(.*)$")
    end
    if held == ref and string.match(holder, "^[^@]*") == worker then
        ours[#ours + 1], holders[i] = i, holder
        ids[#ids + 1] = string.match(ref, "[%d-]+$")
    else
        lost[#lost + 1] = ref
    end
end
if #ids > 0 then
    local claim = { "XCLAIM", KEYS[1], group, consumer, 0 }
    for _, id in ipairs(ids) do
        claim[#claim + 1] = id
    end
    claim[#claim + 1] = "JUSTID"
    redis.call(unpack(claim))
end
for _, i in ipairs(ours) do
    redis.call("SET", KEYS[i], "c" .. deadline .. ":" .. holders[i] .. ":" .. ARGV[i + 4], "PX", expire_ms)
end
return lost
