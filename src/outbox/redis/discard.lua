#!lua flags=allow-oom
-- KEYS[1]: the destination; ARGV: number. Removes a held or dead entry; returns 0 if there is none.
local base, id = KEYS[1], ARGV[1]
if redis.call('ZREM', base .. ':held', id) + redis.call('ZREM', base .. ':dead', id) == 0 then
    return 0
end
redis.call('ZREM', base .. ':waiting', id)
redis.call('DEL', base .. ':entry:' .. id)
return 1
