-- (Not flagged as reading only: a replica, which may be behind, is to refuse it.)
-- Returns how many wait, how many of those are held, how many are dead, whether it is paused, how many lanes are blocked, and when the
-- oldest was pushed.
local head = first(':waiting')
local blocked = redis.call('SCARD', base .. ':blocked')
if head and not lanes().lane_of(head)
    and (redis.call('HGET', entry(head), 'state') == 'held' or redis.call('HEXISTS', entry(head), 'rests') == 1) then
    blocked = 1
end
return {redis.call('ZCARD', base .. ':waiting'), redis.call('ZCARD', base .. ':held'), redis.call('ZCARD', base .. ':dead'),
    redis.call('EXISTS', base .. ':paused'), blocked, head and redis.call('HGET', entry(head), 'pushed_at') or false}
