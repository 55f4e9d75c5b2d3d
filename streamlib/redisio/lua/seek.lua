-- Reads the next members of a sorted set behind a place (score, member), in the set's own order.
--
-- KEYS[1] an Ordered index
-- ARGV[1] score and
-- ARGV[2] member of the place; "" stands before every member of that score
-- ARGV[3] the last score that is wanted
-- ARGV[4] how many members at most
--
-- Returns {member, score, member, score, ...}. Writes nothing. Members of one score stand in the order of their bytes:
-- the first one behind the place is found by halving, so a page costs the same wherever it begins.

local set, score, member = KEYS[1], ARGV[1], ARGV[2]

-- By bytes: `<` on strings follows the server's locale.
local function is_behind(other)
    for i = 1, math.min(#other, #member) do
        local theirs, ours = other:byte(i), member:byte(i)
        if theirs ~= ours then
            return theirs > ours
        end
    end
    return #other > #member
end

local first = redis.call("ZCOUNT", set, "-inf", "(" .. score)
if member ~= "" then
    local high = first + redis.call("ZCOUNT", set, score, score)
    while first < high do
        local middle = math.floor((first + high) / 2)
        if is_behind(redis.call("ZRANGE", set, middle, middle)[1]) then
            high = middle
        else
            first = middle + 1
        end
    end
end
local stop = math.min(redis.call("ZCOUNT", set, "-inf", ARGV[3]), first + tonumber(ARGV[4]))
if first >= stop then
    return {}
end
return redis.call("ZRANGE", set, first, stop - 1, "WITHSCORES")
