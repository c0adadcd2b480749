#!lua flags=allow-oom
-- KEYS[1]: the destination; ARGV: holder, lease in milliseconds, the number of the entry that rests, if one does.
-- It is to work where memory is full, since what is delivered makes room.
-- Takes or renews the lease, and returns its fencing token and the head; nothing if another holds it or nothing waits.
local base = KEYS[1]
local holder = redis.call('GET', base .. ':holder')
local fence
if holder == ARGV[1] then
    fence = redis.call('GET', base .. ':fence')
    redis.call('PEXPIRE', base .. ':holder', ARGV[2])
elseif holder then
    return false
else
    fence = redis.call('INCR', base .. ':fence')
    redis.call('SET', base .. ':holder', ARGV[1], 'PX', ARGV[2])
end
local id = redis.call('ZRANGE', base .. ':waiting', 0, 0)[1]
if not id or id == ARGV[3] then
    return false
end
return {fence, id, redis.call('HMGET', base .. ':entry:' .. id,
    'control_id', 'pushed_at', 'state', 'attempts', 'refusals', 'last_failure', 'message', 'identity')}
