-- Lets a replay of a range that has ended be forgotten: its plan, or how far it has come on one partition.
--
-- KEYS[1] streamlib:replay:<topic>:<group> or {S}:replay:<group>
-- ARGV[1] number of the run
-- ARGV[2] in how many ms it is to be forgotten, "0" for now
--
-- Returns 1 when it is or will be, 0 when what stands there is another run's. Sent twice it answers the same, unless
-- another run has begun meanwhile.

local run = redis.call("HGET", KEYS[1], "run")
if run and run ~= ARGV[1] then
    return 0
end
if ARGV[2] == "0" then
    redis.call("DEL", KEYS[1])
else
    redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return 1
