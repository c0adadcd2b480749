-- ARGV[3]: pusher, which of its pushes this is, which was the last to be answered, message, control ID, time, identity, the key under
-- which it is pushed or nothing, and how long keys are known in seconds.
-- A push that is repeated because its answer was lost is answered again; one that comes after a later one is late, and no push any more.
local pusher = base .. ':pusher:' .. ARGV[3]
local last = redis.call('HMGET', pusher, 'push', 'id')
local done = tonumber(last[1] or 0)
if done < tonumber(ARGV[5]) then
    return redis.error_reply('REPLACED')
elseif tonumber(ARGV[4]) <= done then
    return tonumber(last[2])
end
local key = base .. ':key:' .. ARGV[10]
local id = ARGV[10] ~= '' and tonumber(redis.call('GET', key)) or nil
if not id then
    id = redis.call('INCR', base .. ':last')
    redis.call('HSET', entry(id), 'message', ARGV[6], 'control_id', ARGV[7], 'pushed_at', ARGV[8],
        'state', 'waiting', 'attempts', 0, 'refusals', 0, 'unknowns', 0, 'identity', ARGV[9])
    redis.call('ZADD', base .. ':waiting', id, id)
    if ARGV[10] ~= '' then
        redis.call('SET', key, id, 'EX', ARGV[11])
    end
    ring(':bell')
end
redis.call('HSET', pusher, 'push', ARGV[4], 'id', id)
redis.call('EXPIRE', pusher, 86400)
return id
