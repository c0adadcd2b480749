-- KEYS[1]: the destination; ARGV: pusher, which of its pushes this is, message, control ID, time, identity.
-- A push that is repeated because its answer was lost is answered again; one that comes after a later one is late, and no push any more.
local base, pusher = KEYS[1], KEYS[1] .. ':pusher:' .. ARGV[1]
local last = redis.call('HMGET', pusher, 'push', 'id')
if last[1] and tonumber(ARGV[2]) <= tonumber(last[1]) then
    return tonumber(last[2])
end
local id = redis.call('INCR', base .. ':last')
redis.call('HSET', base .. ':entry:' .. id, 'message', ARGV[3], 'control_id', ARGV[4], 'pushed_at', ARGV[5],
    'state', 'waiting', 'attempts', 0, 'refusals', 0, 'identity', ARGV[6])
redis.call('ZADD', base .. ':waiting', id, id)
redis.call('HSET', pusher, 'push', ARGV[2], 'id', id)
redis.call('EXPIRE', pusher, 600)
return id
