-- Tells what XINFO STREAM tells, without what is in the first and the last entry: these may be too large to send.
-- Writes nothing.
--
-- KEYS[1]  a stream that exists
-- ARGV     none
--
-- Returns names and values as XINFO STREAM does; "first-entry" and "last-entry" are {id, {}}, or nil.

local info = redis.call("XINFO", "STREAM", KEYS[1])
for i = 1, #info, 2 do
    if (info[i] == "first-entry" or info[i] == "last-entry") and info[i + 1] then
        info[i + 1] = { info[i + 1][1], {} }
    end
end
return info
