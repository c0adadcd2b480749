-- ARGV[3]: fencing token, number, new state (or 'delivered'), attempts, refusals, unknown results, failure, the milliseconds for which it
-- rests or nothing, holder, identity; lease, where the next entry is to be claimed at once.
-- Returns two values; the second is the next claim, if that was asked for. The first is 1 if it is settled, and 0 if the claim is lost:
-- another has taken over since, the entry is not there any more, or another has its number (the counter goes back where a replica takes
-- over that lacks the last pushes). If the same call comes again since its answer was lost, it is answered as the first time.
local fence, id, state, rests, holder, identity = ARGV[3], ARGV[4], ARGV[5], ARGV[10], ARGV[11], ARGV[12]
local known = redis.call('MGET', base .. ':holder', base .. ':fence', base .. ':settled', base .. ':lanes_from',
    base .. ':settled:' .. fence)
local settled = fence .. ' ' .. id .. ' ' .. identity .. ' ' .. state
local lanes = known[4] and lanes()
local lane = lanes and lanes.flight_of(id, fence)
if not lane and known[5] == settled then
    return {1, false}
elseif not lane and (known[2] ~= fence or known[1] and known[1] ~= holder) then
    return {0, false}
end
local function leave()
    if lanes then
        return lanes.leave(id)
    end
    redis.call('ZREM', base .. ':waiting', id)
    redis.call('ZREM', base .. ':held', id)
end
local function settle()
    if not redis.call('ZSCORE', base .. ':waiting', id) then
        return known[3] == settled
    end
    local now = redis.call('HMGET', entry(id), 'identity', 'state')
    if (now[1] or '') ~= identity or lanes and not lane and lanes.lane_of(id) then
        return false
    elseif state == 'sending' and now[2] == 'held' then
        -- It was held meanwhile, and is not sent.
        return false
    end
    if not lane then
        redis.call('SET', base .. ':settled', settled)
    elseif state ~= 'sending' then
        -- A minute is longer than any repetition of the call takes.
        redis.call('SET', base .. ':settled:' .. fence, settled, 'EX', 60)
    end
    if state == 'delivered' then
        leave()
        redis.call('DEL', entry(id))
        if lane then
            redis.call('HDEL', base .. ':lane_of', id)
        end
        return true
    elseif state == 'waiting' and now[2] == 'held' then
        -- What was held while it was sent stays so.
        state = 'held'
    end
    redis.call('HSET', entry(id), 'state', state, 'attempts', ARGV[6], 'refusals', ARGV[7], 'unknowns', ARGV[8], 'last_failure', ARGV[9])
    if state == 'sending' then
        -- Should it be held meanwhile, this is known still.
        redis.call('HSET', entry(id), 'begun', 1)
    else
        redis.call('HDEL', entry(id), 'begun')
    end
    if state == 'waiting' and rests ~= '' and lane then
        local time = lanes.milliseconds()
        redis.call('ZADD', base .. ':rests', time + rests, id)
        redis.call('ZADD', base .. ':rested', time, id)
    elseif state == 'waiting' and rests ~= '' then
        redis.call('HSET', entry(id), 'rests', 1)
    elseif state == 'dead' then
        leave()
        redis.call('ZADD', base .. ':dead', id, id)
    elseif state == 'held' then
        redis.call('ZADD', base .. ':held', id, id)
    end
    return true
end
local is_done = settle()
if lane and (state ~= 'sending' or not is_done) then
    lanes.end_flight(lane)
    local head = first(':waiting')
    if head and not lanes.lane_of(head) or lanes.next_in_lanes() then
        -- For another handle, or another thread of this one.
        ring(base, ':bell')
    end
elseif lanes and state ~= 'sending' then
    local head = first(':waiting')
    if head and lanes.lane_of(head) then
        -- From here on there are lanes, for those as well who wait for the lease.
        ring(base, ':bell')
        ring(base, ':free')
    end
end
if not is_done then
    return {0, false}
elseif ARGV[13] == '' or lane then
    return {1, false}
end
return {1, claim(holder, ARGV[13], '', '0')}
