-- Trims one partition by age and length, but never what a group still needs.
--
-- KEYS[1]    the stream S
-- ARGV[1]    max age, ms, 0 for none
-- ARGV[2]    max length, 0 for none
-- ARGV[3]    at most about so many entries at once, whole nodes
-- ARGV[4...] the declared groups
--
-- Returns the number trimmed, 1 if there is more to trim now, the group that holds back what is due ("" if none),
-- then per group that exists: name, last delivered id, oldest pending id ("" if none).
-- A declared group that does not exist needs everything; where there is no group at all nothing is trimmed.
-- Sent twice, the second trims what has become due since.

local stream = KEYS[1]
local max_age_ms, max_len, at_once = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function less(a, b)
    -- Ids have 64-bit halves: compared as text, a Lua number cannot hold them.
    local a_ms, a_seq = string.match(a, "^(%d+)-(%d+)$")
    local b_ms, b_seq = string.match(b, "^(%d+)-(%d+)$")
    if a_ms == b_ms then
        a_ms, b_ms = a_seq, b_seq
    end
    return #a_ms < #b_ms or (#a_ms == #b_ms and a_ms < b_ms)
end

local function after(id)
    local ms, seq = string.match(id, "^(%d+)-(%d+)$")
    -- Past what a Lua number can count, keeping one entry more is safe.
    return #seq > 15 and id or ms .. "-" .. string.format("%.0f", tonumber(seq) + 1)
end

local kind = redis.call("TYPE", stream).ok
if kind ~= "none" and kind ~= "stream" then
    return redis.error_reply("WRONGTYPE " .. stream .. " is a " .. kind)
elseif kind == "none" then
    return { 0, 0, "" }
end

local answer, exists, safe, holder = { 0, 0, "" }, {}, nil, ""
for _, row in ipairs(redis.call("XINFO", "GROUPS", stream)) do
    local group = {}
    for i = 1, #row, 2 do
        group[row[i]] = row[i + 1]
    end
    local oldest = redis.call("XPENDING", stream, group.name, "-", "+", 1)[1]
    local delivered = group["last-delivered-id"]
    local position = oldest and oldest[1] or after(delivered)
    if not safe or less(position, safe) then
        safe, holder = position, group.name
    end
    exists[group.name] = true
    answer[#answer + 1] = group.name
    answer[#answer + 1] = delivered
    answer[#answer + 1] = oldest and oldest[1] or ""
end
for i = 4, #ARGV do
    if not exists[ARGV[i]] then
        safe, holder = "0-0", ARGV[i]
    end
end
if not safe then
    return answer
end

local length = redis.call("XLEN", stream)
local over = max_len > 0 and math.max(length - max_len, 0) or 0
local cut = "0-0"
if max_age_ms > 0 then
    local time = redis.call("TIME")
    cut = string.format("%.0f-0", math.max(time[1] * 1000 + math.floor(time[2] / 1000) - max_age_ms, 0))
end

-- Whole nodes first, a bounded number at once. LIMIT keeps the newest max_len.
local function whole_nodes(id, most)
    return redis.call("XTRIM", stream, "MINID", "~", id, "LIMIT", string.format("%.0f", most))
end
local trimmed = whole_nodes(less(cut, safe) and cut or safe, at_once)
if trimmed == 0 and over > 0 then
    trimmed = whole_nodes(safe, math.min(over, at_once))
end
if trimmed > 0 then
    answer[1], answer[2] = trimmed, 1
    return answer
end

-- Nothing was written so far. What is left lies within one node, or a group holds it back.
if over > 0 then
    local oldest = redis.call("XRANGE", stream, "-", "+", "COUNT", math.min(over, 100) + 1)
    local first_kept = oldest[#oldest][1]
    if less(cut, first_kept) then
        cut = first_kept
    end
end
if less(safe, cut) then
    if #redis.call("XRANGE", stream, safe, "(" .. cut, "COUNT", 1) > 0 then
        answer[3] = holder
    end
    cut = safe
end
answer[1] = redis.call("XTRIM", stream, "MINID", "=", cut)
answer[2] = answer[1] > 0 and answer[3] == "" and over > 100 and 1 or 0
return answer
