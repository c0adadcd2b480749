#!lua flags=allow-oom
-- KEYS[1]: the destination; ARGV: fencing token, number, new state (or 'delivered'), attempts, refusals, failure, holder, identity.
-- Returns 0 if another has taken over since, the entry does not wait any more, or another has its number (the counter goes back
-- where a replica takes over that lacks the last pushes); repeated because its answer was lost, what it did then.
local base, id, state = KEYS[1], ARGV[2], ARGV[3]
local entry = base .. ':entry:' .. id
local settled = ARGV[1] .. ' ' .. id .. ' ' .. ARGV[8] .. ' ' .. state
local holder = redis.call('GET', base .. ':holder')
if redis.call('GET', base .. ':fence') ~= ARGV[1] or holder and holder ~= ARGV[7] then
    return 0
elseif not redis.call('ZSCORE', base .. ':waiting', id) then
    return redis.call('GET', base .. ':settled') == settled and 1 or 0
elseif (redis.call('HGET', entry, 'identity') or '') ~= ARGV[8] then
    return 0
end
redis.call('SET', base .. ':settled', settled)
if state == 'delivered' then
    redis.call('ZREM', base .. ':waiting', id)
    redis.call('DEL', entry)
    return 1
end
redis.call('HSET', entry, 'state', state, 'attempts', ARGV[4], 'refusals', ARGV[5], 'last_failure', ARGV[6])
if state == 'dead' then
    redis.call('ZREM', base .. ':waiting', id)
    redis.call('ZADD', base .. ':dead', id, id)
elseif state == 'held' then
    redis.call('ZADD', base .. ':held', id, id)
end
return 1
