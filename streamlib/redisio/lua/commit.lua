-- Applies a batch of folded events to a view: rows, indexes, dead letters, done marks and checkpoint, together.
--
-- KEYS[1] S
-- KEYS[2] {S}:owner:<group>
-- KEYS[3] {S}:view:<name>:<generation>
-- KEYS[4] {S}:dead:<group>
-- then    idempotency keys, row keys, index keys
-- ARGV[1] owner     ARGV[2] epoch     ARGV[3] old checkpoint     ARGV[4] new checkpoint     ARGV[5] group
-- ARGV[6] idempotency window, ms      ARGV[7] entries in between ARGV[8] rows more (or less)
-- ARGV[9] states to set, a letter for each idempotency key
-- ARGV[10] count of row keys          ARGV[11] count of index keys   ARGV[12] count of dead letters
-- then    per run of row keys in which the same fields change: the count of rows, the count of fields, and these (none:
--         the rows are deleted); then per row the fields' values
-- then    per index key: the count of members to remove, and these; the count of members to set, the score that all of
--         them get, and these, or "" and the score of each and itself
-- then    the count of marks of the view, and fields and values to set in KEYS[3]
-- then    per dead letter: the count of its fields, and the fields; the last value becomes the server's time, ms
--
-- Returns {"OK", ""} or {"OK", why the group's position could not be moved};
-- {"FENCED", ""} when another owner, epoch or checkpoint is found; {"WRONGTYPE", key, type}; {"BEHIND", last id} when
-- the stream ends before the new checkpoint or is gone. Everything but OK wrote nothing.
-- Sent twice, the second finds the new checkpoint and answers OK. The first write denies OOM.

local KEYS, ARGV, call = KEYS, ARGV, redis.call -- local: they are looked up for every value
local S, OWNER, VIEW, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local old, new, group, window_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local marks, rows, indexes, letters = #ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local CHUNK = 800
local has_msetex = (redis.VALKEY_VERSION_NUM or 0) >= 0x090100 or (redis.REDIS_VERSION_NUM or 0) >= 0x080400

local function kind_of(key)
    return call("TYPE", key).ok
end

local function wrong(first, last, wanted)
    for i = first, last do
        local kind = kind_of(KEYS[i])
        if kind ~= wanted and kind ~= "none" then
            return { "WRONGTYPE", KEYS[i], kind }
        end
    end
end

local function is_after(a, b)
    local a_ms, a_seq = string.match(a, "^(%d+)-(%d+)$")
    local b_ms, b_seq = string.match(b, "^(%d+)-(%d+)$")
    local x, y = a_ms, b_ms
    if a_ms == b_ms then
        x, y = a_seq, b_seq
    end
    return #x > #y or (#x == #y and x > y)
end

local first_row = 5 + marks
local first_index = first_row + rows
local bad = wrong(1, 1, "stream") or wrong(2, 3, "hash") or wrong(4, 4, "stream")
    or wrong(first_row, first_index - 1, "hash") or wrong(first_index, first_index + indexes - 1, "zset")
if bad then
    return bad
end
local held = call("HMGET", OWNER, "owner", "epoch")
local head = call("HMGET", VIEW, "checkpoint", "read", "rows")
local checkpoint = head[1] or "0-0"
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then
    return { "FENCED", "" }
elseif checkpoint == new then
    return { "OK", "" }
elseif checkpoint ~= old then
    return { "FENCED", "" }
elseif kind_of(S) == "none" then
    return { "BEHIND", "0-0" }
end
local stream, info = call("XINFO", "STREAM", S), {}
for i = 1, #stream, 2 do
    info[stream[i]] = stream[i + 1]
end
local last, added = info["last-generated-id"], tonumber(info["entries-added"])
if is_after(new, last) then
    return { "BEHIND", last }
end
-- Entries before the first one were trimmed before this view existed; at the end of the stream the count is known.
local read = (tonumber(head[2]) or (added - tonumber(info["length"]))) + tonumber(ARGV[7])
if new == last then
    read = added
end
read = string.format("%.0f", read)
local count = string.format("%.0f", (tonumber(head[3]) or 0) + tonumber(ARGV[8]))

call("HSET", VIEW, "checkpoint", new, "read", read, "rows", count)

local at = 13
-- The command with the next `count` values of ARGV.
local function apply(command, key, count)
    for first = at, at + count - 1, CHUNK do
        call(command, key, unpack(ARGV, first, math.min(first + CHUNK, at + count) - 1))
    end
    at = at + count
end

-- The command with as many names (or scores) and values, in turn, as fit into one call.
local function apply_pairs(command, key, pairs, size)
    for first = 1, size, CHUNK do
        call(command, key, unpack(pairs, first, math.min(first + CHUNK - 1, size)))
    end
end

local i = first_row
while i < first_index do
    local count, width, pairs = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), {}
    for n = 1, width do
        pairs[2 * n - 1] = ARGV[at + 1 + n]
    end
    at = at + 2 + width
    for row = i, i + count - 1 do
        for n = 1, width do
            pairs[2 * n] = ARGV[at + n - 1]
        end
        at = at + width
        if width == 0 then
            call("DEL", KEYS[row])
        else
            apply_pairs("HSET", KEYS[row], pairs, 2 * width)
        end
    end
    i = i + count
end
for index = first_index, first_index + indexes - 1 do
    local removed = tonumber(ARGV[at])
    at = at + 1
    apply("ZREM", KEYS[index], removed)
    local count, score, pairs = tonumber(ARGV[at]), ARGV[at + 1], {}
    at = at + 2
    if score == "" then
        apply("ZADD", KEYS[index], count * 2)
    else
        for n = 1, count do
            pairs[2 * n - 1], pairs[2 * n] = score, ARGV[at + n - 1]
        end
        at = at + count
        apply_pairs("ZADD", KEYS[index], pairs, 2 * count)
    end
end
local flags = tonumber(ARGV[at])
at = at + 1
apply("HSET", VIEW, flags)
local time = call("TIME")
local now = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
for _ = 1, letters do
    local values = tonumber(ARGV[at])
    local letter = { unpack(ARGV, at + 1, at + values) }
    letter[values] = now
    call("XADD", DEAD, "*", unpack(letter))
    at = at + values + 1
end
for first = 1, marks, CHUNK / 2 do
    local last = math.min(first + CHUNK / 2 - 1, marks)
    local written
    if has_msetex then
        local pairs, size = {}, 0
        for i = first, last do
            pairs[size + 1], pairs[size + 2] = KEYS[4 + i], string.sub(ARGV[9], i, i)
            size = size + 2
        end
        pairs[size + 1], pairs[size + 2] = "PX", window_ms
        written = redis.pcall("MSETEX", size / 2, unpack(pairs)) -- a user may lack the right to a command that is so new
    end
    if type(written) ~= "number" then
        for i = first, last do
            call("SET", KEYS[4 + i], string.sub(ARGV[9], i, i), "PX", window_ms)
        end
    end
end
-- The position is there for lag alone: a group that was removed is made again, and no error here may stop the view.
local moved = redis.pcall("XGROUP", "SETID", S, group, new, "ENTRIESREAD", read)
if type(moved) == "table" and moved.err then
    moved = redis.pcall("XGROUP", "CREATE", S, group, new, "ENTRIESREAD", read)
end
return { "OK", type(moved) == "table" and moved.err or "" }
