-- KEYS[1]: the destination; ARGV[1]: its generation as the caller knows it, or nothing if that is not to be checked; ARGV[2]: the
-- highest number of an entry that the caller has seen.
local base = KEYS[1]
local FIELDS = {'control_id', 'pushed_at', 'state', 'attempts', 'refusals', 'unknowns', 'last_failure', 'identity'}
if ARGV[1] ~= '' then
    local known = redis.call('MGET', base .. ':generation', base .. ':last')
    if known[1] ~= ARGV[1] or tonumber(known[2] or 0) < tonumber(ARGV[2]) then
        return redis.error_reply('REPLACED')
    end
end

local function entry(id)
    return base .. ':entry:' .. id
end

-- Wakes one who waits at this bell of a destination.
local function ring(destination, bell)
    if redis.call('LLEN', destination .. bell) == 0 then
        redis.call('RPUSH', destination .. bell, 1)
    end
end

-- Takes or renews the lease, and returns its fencing token, the head's number and the head with its message; without a head if
-- nothing is to be sent now; without a token, and with the milliseconds until the lease ends, if another holds it.
local function claim(holder, lease, resting)
    local known = redis.call('MGET', base .. ':holder', base .. ':fence', base .. ':paused')
    local fence = known[2]
    if known[1] == holder then
        redis.call('PEXPIRE', base .. ':holder', lease)
    elseif known[1] then
        return {'', redis.call('PTTL', base .. ':holder'), false, false}
    else
        fence = tostring(redis.call('INCR', base .. ':fence'))
        redis.call('SET', base .. ':holder', holder, 'PX', lease)
    end
    local id = redis.call('ZRANGE', base .. ':waiting', 0, 0)[1]
    if not id or known[3] or id == resting and redis.call('HEXISTS', entry(id), 'rests') == 1 then
        return {fence, 0, false, false}
    end
    return {fence, tonumber(id), redis.call('HMGET', entry(id), unpack(FIELDS)), redis.call('HGET', entry(id), 'message')}
end
