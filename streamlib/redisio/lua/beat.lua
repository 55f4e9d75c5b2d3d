-- Says that a worker lives and what it does, and tells who else lives: one snapshot for all partitions of all groups.
--
-- KEYS[1] streamlib:workers, a hash: worker id -> "<server ms of the beat> <what it told of itself>", and "changes"
-- ARGV[1] worker id
-- ARGV[2] what it tells of itself
-- ARGV[3] live, ms: whoever beat within so many counts as living
--
-- Returns {server ms, changes, {worker id, its value, ...}}, the asker included. "changes" counts up when a worker comes
-- or tells something new, so that others need not read everything to learn that nothing has happened. Who was silent
-- for ten times as long is removed, and so is what no worker wrote. Sent twice it does the same again. The first write
-- removes nothing and is let through by a full server, and the rest with it: what a worker tells is short and replaces
-- what it told before.

local flat = redis.call("HGETALL", KEYS[1])
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local live = tonumber(ARGV[3])
local mine = string.format("%.0f", now) .. " " .. ARGV[2]

local changes, told_before = 0, nil
local alive, gone = { ARGV[1], mine }, {}
for i = 1, #flat, 2 do
    local id, value = flat[i], flat[i + 1]
    local beat, told = string.match(value, "^(%d+) (.*)$")
    if id == "changes" then
        changes = tonumber(#value <= 15 and string.match(value, "^%d+$") or 0)
    elseif id == ARGV[1] then
        told_before = told
    elseif not beat or math.abs(now - beat) > live * 10 then
        gone[#gone + 1] = id
    elseif now - beat <= live then
        alive[#alive + 1] = id
        alive[#alive + 1] = value
    end
end

redis.call("HDEL", KEYS[1], "")
redis.call("HSET", KEYS[1], ARGV[1], mine)
for _, id in ipairs(gone) do
    redis.call("HDEL", KEYS[1], id)
end
if told_before ~= ARGV[2] then
    changes = changes + 1
    redis.call("HSET", KEYS[1], "changes", changes)
end
return { now, changes, alive }
