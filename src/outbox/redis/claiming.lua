-- Takes or renews the lease, and returns its fencing token, the head's number and the head with its message; without a head if
-- nothing is to be sent now; without a token, and with the milliseconds until the lease ends, if another holds it. Where the head has a
-- lane, there is no lease for all, but one for each claim; most: how many there may be, 0 for none by this call; caller: which of the
-- holder's claims it is. The last value is false where there are no lanes.
local function claim(holder, lease, resting, most, caller)
    local id = first(':waiting')
    local known = redis.call('MGET', base .. ':holder', base .. ':fence', base .. ':paused', base .. ':lanes_from')
    local lane = known[4] and lanes()
    if lane and id and lane.lane_of(id) then
        if most == '0' then
            return {'0', 0, false, false, false}
        end
        return lane.claim_in_lanes(lease, most, holder .. ':' .. caller)
    elseif lane and redis.call('ZCARD', base .. ':flight') > 0 then
        -- One without a lane was queued again beside those that have some.
        local now = lane.end_due_flights()
        local ends = redis.call('ZRANGE', base .. ':flight', 0, 0, 'WITHSCORES')[2]
        if id and ends then
            return {'0', 0, false, false, math.max(0, ends - now)}
        end
    end
    local fence = known[2]
    if known[1] == holder then
        redis.call('PEXPIRE', base .. ':holder', lease)
    elseif known[1] then
        if id then
            -- The holder may have missed the bell that woke this caller.
            ring(base, ':bell')
        end
        return {'', redis.call('PTTL', base .. ':holder'), false, false, false}
    elseif not id and tonumber(most) > 1 then
        -- The next entries may have lanes, so that every handle may claim them: there is no lease.
        return {'0', 0, false, false, false}
    else
        fence = tostring(redis.call('INCR', base .. ':fence'))
        redis.call('SET', base .. ':holder', holder, 'PX', lease)
    end
    if not id or known[3] or id == resting and redis.call('HEXISTS', entry(id), 'rests') == 1 then
        return {fence, 0, false, false, false}
    end
    return {fence, tonumber(id), redis.call('HMGET', entry(id), unpack(FIELDS)), redis.call('HGET', entry(id), 'message'), false}
end
