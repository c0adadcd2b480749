#!lua flags=allow-oom
-- KEYS[1]: the destination; ARGV: number. Lets a held or dead entry wait at its place; returns 0 if there is none.
local base, id = KEYS[1], ARGV[1]
if redis.call('ZREM', base .. ':held', id) + redis.call('ZREM', base .. ':dead', id) == 0 then
    return 0
end
redis.call('ZADD', base .. ':waiting', id, id)
redis.call('HSET', base .. ':entry:' .. id, 'state', 'waiting', 'refusals', 0)
return 1
