-- Claims idempotency keys, as somebody would write it by hand: the yardstick that a worker is measured against.
--
-- KEYS[1..n] {S}:idem:<group>:<event id>, one per entry
-- ARGV[1]    the token of the one who claims
-- ARGV[2]    lease, ms
--
-- Returns n numbers: 1 where the key is ours now, 0 where somebody else has it.
-- Sent twice it answers the same: what bears our own token is ours.

local answer = {}
for i = 1, #KEYS do
    local is_ours = redis.call("SET", KEYS[i], ARGV[1], "NX", "PX", ARGV[2])
        or redis.pcall("GET", KEYS[i]) == ARGV[1] -- a key of another type is nobody's
    answer[i] = is_ours and 1 or 0
end
return answer
