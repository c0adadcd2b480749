-- KEYS: the destinations; ARGV[3]: the name of this call, message, control ID, time, the key of the names of all destinations; then for
-- each destination its name, a generation to begin with, and an identity.
-- Stores the message for each; repeated because its answer was lost, returns the same numbers.
local ids = {}
for place, base in ipairs(KEYS) do
    local own = 8 + (place - 1) * 3
    local entry, call = base .. ':entry:', base .. ':key:call ' .. ARGV[3]
    local id = tonumber(redis.call('GET', call))
    if not id then
        redis.call('SET', base .. ':generation', ARGV[own + 1], 'NX')
        redis.call('SADD', ARGV[7], ARGV[own])
        id = redis.call('INCR', base .. ':last')
        redis.call('HSET', entry .. id, 'message', ARGV[4], 'control_id', ARGV[5], 'pushed_at', ARGV[6],
            'state', 'waiting', 'attempts', 0, 'refusals', 0, 'unknowns', 0, 'identity', ARGV[own + 2])
        redis.call('ZADD', base .. ':waiting', id, id)
        redis.call('SET', call, id, 'EX', 600)
        if redis.call('LLEN', base .. ':bell') == 0 then
            redis.call('RPUSH', base .. ':bell', 1)
        end
    end
    ids[place] = id
end
return ids
