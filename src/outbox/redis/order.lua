-- ARGV[3]: what an operator wants, and the number of an entry. Returns how many entries it concerned.
local order, id, lanes = ARGV[3], ARGV[4], lanes()
local state = redis.call('HGET', entry(id), 'state')
local changed = 1
if order == 'discard' then
    local waits = redis.call('ZSCORE', base .. ':waiting', id)
    lanes.leave(id)
    local is_dead = redis.call('ZREM', base .. ':dead', id) == 1
    changed = (waits or is_dead) and 1 or 0
    redis.call('DEL', entry(id))
    redis.call('HDEL', base .. ':lane_of', id)
elseif order == 'requeue' and (state == 'held' or state == 'dead') then
    redis.call('ZREM', base .. ':held', id)
    redis.call('HSET', entry(id), 'state', 'waiting', 'attempts', 0, 'refusals', 0, 'unknowns', 0)
    redis.call('HDEL', entry(id), 'rests', 'begun')
    if redis.call('ZREM', base .. ':dead', id) == 1 then
        redis.call('ZADD', base .. ':waiting', id, id)
        local from = redis.call('GET', base .. ':lanes_from')
        if from and tonumber(from) <= tonumber(id) then
            local lane = lanes.lane_of(id) or '.'
            redis.call('HSET', base .. ':lane_of', id, lane)
            redis.call('ZADD', base .. ':lane:' .. lane, id, id)
        else
            redis.call('HDEL', base .. ':lane_of', id)
        end
    end
    lanes.end_rest(id)
elseif order == 'hold' and (state == 'waiting' or state == 'sending') then
    redis.call('HSET', entry(id), 'state', 'held')
    redis.call('ZADD', base .. ':held', id, id)
    local lane = lanes.lane_of(id)
    if lane then
        lanes.refresh(base, lane)
    end
elseif order == 'unhold' and state == 'held' then
    redis.call('ZREM', base .. ':held', id)
    -- What was being sent when it was held may be so still.
    redis.call('HSET', entry(id), 'state', redis.call('HEXISTS', entry(id), 'begun') == 1 and 'sending' or 'waiting')
    redis.call('HDEL', entry(id), 'rests')
    lanes.end_rest(id)
elseif order == 'try_now' then
    local head = first(':waiting')
    changed = (head and redis.call('HDEL', entry(head), 'rests') or 0) + redis.call('ZCARD', base .. ':rests')
    -- Whoever claims next ends these rests.
    redis.call('ZUNIONSTORE', base .. ':rests', 1, base .. ':rests', 'WEIGHTS', 0)
elseif order == 'pause' then
    redis.call('SET', base .. ':paused', 1)
elseif order == 'resume' then
    changed = redis.call('DEL', base .. ':paused')
else
    changed = 0
end
ring(base, ':bell')
return changed
