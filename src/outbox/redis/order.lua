-- ARGV[3]: what an operator wants, and the number of an entry. Returns how many entries it concerned.
local order, id = ARGV[3], ARGV[4]
local state = redis.call('HGET', entry(id), 'state')
local function leave(...)
    local count = 0
    for _, set in ipairs({...}) do
        count = count + redis.call('ZREM', base .. set, id)
    end
    return count
end
local changed = 1
if order == 'discard' then
    changed = math.min(1, leave(':waiting', ':held', ':dead'))
    redis.call('DEL', entry(id))
elseif order == 'requeue' and (state == 'held' or state == 'dead') then
    leave(':held', ':dead')
    redis.call('ZADD', base .. ':waiting', id, id)
    redis.call('HSET', entry(id), 'state', 'waiting', 'attempts', 0, 'refusals', 0, 'unknowns', 0)
    redis.call('HDEL', entry(id), 'rests', 'begun')
elseif order == 'hold' and (state == 'waiting' or state == 'sending') then
    redis.call('HSET', entry(id), 'state', 'held')
    redis.call('ZADD', base .. ':held', id, id)
elseif order == 'unhold' and state == 'held' then
    leave(':held')
    -- What was being sent when it was held may be so still.
    redis.call('HSET', entry(id), 'state', redis.call('HEXISTS', entry(id), 'begun') == 1 and 'sending' or 'waiting')
    redis.call('HDEL', entry(id), 'rests')
elseif order == 'try_now' then
    local head = redis.call('ZRANGE', base .. ':waiting', 0, 0)[1]
    changed = head and redis.call('HDEL', entry(head), 'rests') or 0
elseif order == 'pause' then
    redis.call('SET', base .. ':paused', 1)
elseif order == 'resume' then
    changed = redis.call('DEL', base .. ':paused')
else
    changed = 0
end
ring(base, ':bell')
return changed
