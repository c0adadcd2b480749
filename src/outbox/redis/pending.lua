#!lua flags=allow-oom
-- (Not flagged as reading only: a replica, which may be behind, is to refuse it.)
-- KEYS[1]: the destination. Returns how many wait, how many are dead, and when the oldest that waits was pushed.
local base = KEYS[1]
local head = redis.call('ZRANGE', base .. ':waiting', 0, 0)[1]
return {redis.call('ZCARD', base .. ':waiting'), redis.call('ZCARD', base .. ':dead'),
    head and redis.call('HGET', base .. ':entry:' .. head, 'pushed_at') or false}
