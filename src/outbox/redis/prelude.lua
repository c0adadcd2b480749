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

local function first(set)
    return redis.call('ZRANGE', base .. set, 0, 0)[1]
end
