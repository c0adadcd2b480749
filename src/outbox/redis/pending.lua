-- (Not flagged as reading only: a replica, which may be behind, is to refuse it.)
-- Returns how many wait, how many of those are held, how many are dead, whether it is paused, and when the oldest was pushed.
local head = redis.call('ZRANGE', base .. ':waiting', 0, 0)[1]
return {redis.call('ZCARD', base .. ':waiting'), redis.call('ZCARD', base .. ':held'), redis.call('ZCARD', base .. ':dead'),
    redis.call('EXISTS', base .. ':paused'), head and redis.call('HGET', entry(head), 'pushed_at') or false}
