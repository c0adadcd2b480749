#!lua flags=allow-oom
-- (Not flagged as reading only: a replica, which may be behind, is to refuse it.)
-- KEYS[1]: the destination; ARGV: after which number, how many. Returns the held and the dead in their order.
local base, ids = KEYS[1], {}
for _, set in ipairs({':held', ':dead'}) do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. set, '(' .. ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])) do
        table.insert(ids, tonumber(id))
    end
end
table.sort(ids)
local entries = {}
for place = 1, math.min(#ids, tonumber(ARGV[2])) do
    entries[place] = {ids[place], redis.call('HMGET', base .. ':entry:' .. ids[place],
        'control_id', 'pushed_at', 'state', 'attempts', 'refusals', 'last_failure', 'message', 'identity')}
end
return entries
