-- Changes which generations a view has, if it still has those that the asker saw.
--
-- KEYS[1] the register of views, a hash
-- ARGV    per field: its name, the value that it must have, the value that it gets; "" is no such field
--
-- Returns 1 when all fields have what they were to get, 0 when one of them had something else: nothing was written then.
-- Sent twice, the second finds what the first wrote and answers 1.

local fits, done = true, true
for i = 1, #ARGV, 3 do
    local now = redis.call("HGET", KEYS[1], ARGV[i]) or ""
    fits = fits and now == ARGV[i + 1]
    done = done and now == ARGV[i + 2]
end
if done then
    return 1
elseif not fits then
    return 0
end
for i = 1, #ARGV, 3 do
    if ARGV[i + 2] == "" then
        redis.call("HDEL", KEYS[1], ARGV[i])
    else
        redis.call("HSET", KEYS[1], ARGV[i], ARGV[i + 2])
    end
end
return 1
