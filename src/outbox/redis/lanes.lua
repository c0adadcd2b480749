-- The entries of a destination that never had another lane than its own have none here: the oldest is the head. Once it has a rule
-- that gives lanes, or an entry that was given one, each new entry (from ':lanes_from' on) has its lane: a digest of its key, '.' for the
-- destination's own, '!' for a barrier. Those that were there before are sent first.
--   :lane_of  the lane of each entry, the dead as well
--   :lane:X   the entries of a lane, by number
--   :ready    the heads that can be claimed, unless a barrier is before them, by number
--   :flight   the lanes of which an entry is claimed, by the end of the claim's lease
--   :busy     those lanes, each with the number of that entry, the claim's token, and by whom it was made (a handle, and which of its
--             claims)
--   :rests    the entries that rest, by the end of the rest; ':rested': by its beginning
--   :blocked  the lanes whose head is held or rests
-- What is done with them is made when it is asked for, since most destinations have none.
local function lanes()
    local function milliseconds()
        local now = redis.call('TIME')
        return now[1] * 1000 + math.floor(now[2] / 1000)
    end

    -- The lane of an entry; false if it has none.
    local function lane_of(id)
        return redis.call('HGET', base .. ':lane_of', id)
    end

    -- Marks a lane anew, of which an entry has changed. If one that is queued again comes first now, the former head is none any more.
    local function refresh(destination, lane)
        local first = redis.call('ZRANGE', destination .. ':lane:' .. lane, 0, 1)
        local head = first[1]
        redis.call('SREM', destination .. ':blocked', lane)
        if first[2] then
            redis.call('ZREM', destination .. ':ready', first[2])
        end
        if not head then
            return
        elseif redis.call('HGET', destination .. ':entry:' .. head, 'state') == 'held'
            or redis.call('ZSCORE', destination .. ':rests', head) then
            redis.call('SADD', destination .. ':blocked', lane)
        elseif not redis.call('ZSCORE', destination .. ':flight', lane) then
            redis.call('ZADD', destination .. ':ready', head, head)
            return
        end
        redis.call('ZREM', destination .. ':ready', head)
    end

    local function forget_rest(id)
        redis.call('ZREM', base .. ':rests', id)
        redis.call('ZREM', base .. ':rested', id)
    end

    local function end_rest(id)
        forget_rest(id)
        local lane = lane_of(id)
        if lane then
            refresh(base, lane)
        end
    end

    -- An entry leaves the queue.
    local function leave(id)
        redis.call('ZREM', base .. ':waiting', id)
        redis.call('ZREM', base .. ':held', id)
        local lane = lane_of(id)
        if lane then
            redis.call('ZREM', base .. ':lane:' .. lane, id)
            redis.call('ZREM', base .. ':ready', id)
            forget_rest(id)
            refresh(base, lane)
        end
    end

    -- The claim in a lane has ended.
    local function end_flight(lane)
        redis.call('ZREM', base .. ':flight', lane)
        redis.call('HDEL', base .. ':busy', lane)
        refresh(base, lane)
    end

    -- The claim for whose entry, token and maker this is true: its lane, entry and token, whether the entry is there still or not.
    local function claim_where(is_it)
        local busy = redis.call('HGETALL', base .. ':busy')
        for place = 2, #busy, 2 do
            local id, fence, by = string.match(busy[place], '^(%d+) (%d+) (.*)$')
            if is_it(id, fence, by) then
                return busy[place - 1], id, fence
            end
        end
    end

    -- The lane in which this entry is claimed by this token.
    local function flight_of(id, fence)
        return (claim_where(function(its_id, its_fence) return its_id == id and its_fence == fence end))
    end

    -- The oldest entry that can be claimed in its lane.
    local function next_in_lanes()
        local ready, barrier = first(':ready'), first(':lane:!')
        if not ready or redis.call('ZSCORE', base .. ':flight', '!') then
            return nil
        elseif ready == barrier then
            local all = redis.call('ZCARD', base .. ':flight') == 0 and first(':waiting') == ready
            return all and ready or nil
        elseif barrier and tonumber(barrier) < tonumber(ready) then
            return nil
        end
        return ready
    end

    -- Ends the claims in lanes whose time is over; returns the time.
    local function end_due_flights()
        local now = milliseconds()
        for _, lane in ipairs(redis.call('ZRANGEBYSCORE', base .. ':flight', '-inf', now)) do
            end_flight(lane)
        end
        return now
    end

    -- The claim that this caller has made before without hearing of it: its lane, entry and token, if the entry may still be sent.
    local function unheard_claim(caller)
        local lane, id, fence = claim_where(function(_, _, by) return by == caller end)
        if not lane then
            return nil
        elseif redis.call('ZSCORE', base .. ':waiting', id) and redis.call('HGET', entry(id), 'state') ~= 'held' then
            return lane, id, fence
        end
        end_flight(lane)
    end

    -- Claims the oldest entry that can be claimed in its lane, if no more than so many are. Returns as claim does; the last value is the
    -- time after which there may be something to claim, negative if that is not known.
    local function claim_in_lanes(lease, most, caller)
        local now = end_due_flights()
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':rests', '-inf', now, 'LIMIT', 0, 64)) do
            end_rest(id)
        end
        -- Where the clock was set back, those end too that have begun later than now.
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. ':rested', '(' .. now, '+inf', 'LIMIT', 0, 64)) do
            end_rest(id)
        end
        local is_paused = redis.call('EXISTS', base .. ':paused') == 1
        local lane, id, fence
        if not is_paused then
            lane, id, fence = unheard_claim(caller)
            id = id or redis.call('ZCARD', base .. ':flight') < tonumber(most) and next_in_lanes()
        end
        if not id then
            local wait = -1
            for _, set in ipairs({':rests', ':flight'}) do
                local ends = redis.call('ZRANGE', base .. set, 0, 0, 'WITHSCORES')[2]
                if ends and (wait < 0 or ends - now < wait) then
                    wait = math.max(0, ends - now)
                end
            end
            return {'0', 0, false, false, wait}
        end
        fence, lane = fence or tostring(redis.call('INCR', base .. ':fence')), lane or lane_of(id)
        redis.call('ZADD', base .. ':flight', now + lease, lane)
        redis.call('HSET', base .. ':busy', lane, id .. ' ' .. fence .. ' ' .. caller)
        refresh(base, lane)
        if redis.call('ZCARD', base .. ':flight') < tonumber(most) and next_in_lanes() then
            -- For another handle.
            ring(base, ':bell')
        end
        return {fence, tonumber(id), redis.call('HMGET', entry(id), unpack(FIELDS)), redis.call('HGET', entry(id), 'message'), 0}
    end
    return {milliseconds = milliseconds, lane_of = lane_of, refresh = refresh, end_rest = end_rest, leave = leave,
        end_flight = end_flight, flight_of = flight_of, next_in_lanes = next_in_lanes, end_due_flights = end_due_flights,
        claim_in_lanes = claim_in_lanes}
end
