-- One step of SCAN on the node that serves a partition, for on Cluster a command without a key goes anywhere.
--
-- KEYS[1] the partition's stream; it only says which node is meant
-- ARGV[1] cursor, "0" to begin
-- ARGV[2] pattern of the keys wanted
-- ARGV[3] keys to look at
--
-- Returns {next cursor, keys}; the cursor is "0" at the end. Writes nothing.

return redis.call("SCAN", ARGV[1], "MATCH", ARGV[2], "COUNT", ARGV[3])
