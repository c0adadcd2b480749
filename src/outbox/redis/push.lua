-- ARGV[3]: pusher, which of its pushes this is, which was the last to be answered, message, control ID, time, the key under which it is
-- pushed or nothing, how long keys are known in seconds, the key of the names of all destinations; the lane that was given or nothing,
-- the caller's rule for lanes or nothing, the lane by it, the lane by the patient or nothing if it was not looked for. Then, for
-- each of the KEYS after the first, a destination to which it is pushed: its name, a generation to begin with, and the entry's identity.
-- Returns the entries' numbers, or the errors REPLACED (the server lacks what was pushed before) and RULE (a destination has another
-- rule). A push that is repeated because its answer was lost is answered again; one that comes after a later one is late, and no push
-- any more.
local pusher = base .. ':pusher:' .. ARGV[3]
local last = redis.call('HMGET', pusher, 'push', 'ids')
local done = tonumber(last[1] or 0)
if done < tonumber(ARGV[5]) then
    return redis.error_reply('REPLACED')
elseif tonumber(ARGV[4]) <= done then
    return cjson.decode(last[2])
end
local given, own_rule, own_lane, by_patient = ARGV[12], ARGV[13], ARGV[14], ARGV[15]
local lane_at, has_lanes = {}, {}
for place = 2, #KEYS do
    local known = redis.call('MGET', KEYS[place] .. ':rule', KEYS[place] .. ':lanes_from')
    local rule = known[1] or 'destination'
    lane_at[place] = given ~= '' and given or rule == own_rule and own_lane
        or own_rule == '' and (rule == 'destination' and '.' or rule == 'patient-id' and by_patient ~= '' and by_patient)
    has_lanes[place] = known[2]
    if not lane_at[place] then
        return redis.error_reply('RULE ' .. rule)
    end
end
local ids = {}
for place = 2, #KEYS do
    local target, lane, own = KEYS[place], lane_at[place], 16 + (place - 2) * 3
    redis.call('SET', target .. ':generation', ARGV[own + 1], 'NX')
    local key = target .. ':key:' .. redis.call('GET', target .. ':generation') .. ':' .. ARGV[9]
    local id = ARGV[9] ~= '' and tonumber(redis.call('GET', key)) or nil
    if not id then
        id = redis.call('INCR', target .. ':last')
        redis.call('HSET', target .. ':entry:' .. id, 'message', ARGV[6], 'control_id', ARGV[7], 'pushed_at', ARGV[8],
            'state', 'waiting', 'attempts', 0, 'refusals', 0, 'unknowns', 0, 'identity', ARGV[own + 2])
        if not has_lanes[place] and lane ~= '.' then
            redis.call('SET', target .. ':lanes_from', id, 'NX')
        end
        if has_lanes[place] or lane ~= '.' then
            redis.call('HSET', target .. ':lane_of', id, lane)
            redis.call('ZADD', target .. ':lane:' .. lane, id, id)
            lanes().refresh(target, lane)
            -- Whoever waits for the lease may claim now.
            ring(target, ':free')
        end
        redis.call('ZADD', target .. ':waiting', id, id)
        if ARGV[9] ~= '' then
            redis.call('SET', key, id, 'EX', ARGV[10])
        end
        if target ~= base then
            redis.call('SADD', ARGV[11], ARGV[own])
        end
        ring(target, ':bell')
    end
    ids[place - 1] = id
end
redis.call('HSET', pusher, 'push', ARGV[4], 'ids', cjson.encode(ids))
redis.call('EXPIRE', pusher, 86400)
return ids
