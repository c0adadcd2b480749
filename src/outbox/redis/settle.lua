-- ARGV[3]: fencing token, number, new state (or 'delivered'), attempts, refusals, unknown results, failure, whether it rests, holder,
-- identity; lease, where the next entry is to be claimed at once.
-- Returns two values; the second is the next claim, if that was asked for. The first is 0 if another has taken over since, the entry is not there any more, or another has its number (the counter goes back where
-- a replica takes over that lacks the last pushes); repeated because its answer was lost, what it did then.
local fence, id, state, rests, holder, identity = ARGV[3], ARGV[4], ARGV[5], ARGV[10], ARGV[11], ARGV[12]
local known = redis.call('MGET', base .. ':holder', base .. ':fence', base .. ':settled')
local settled = fence .. ' ' .. id .. ' ' .. identity .. ' ' .. state
if known[2] ~= fence or known[1] and known[1] ~= holder then
    return {0, false}
end
local function settle()
    if not redis.call('ZSCORE', base .. ':waiting', id) then
        return known[3] == settled
    end
    local now = redis.call('HMGET', entry(id), 'identity', 'state')
    if (now[1] or '') ~= identity then
        return false
    elseif state == 'sending' and now[2] == 'held' then
        -- It was held meanwhile, and is not sent.
        return false
    end
    redis.call('SET', base .. ':settled', settled)
    if state == 'delivered' then
        redis.call('ZREM', base .. ':waiting', id)
        redis.call('ZREM', base .. ':held', id)
        redis.call('DEL', entry(id))
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
    if rests == '1' then
        redis.call('HSET', entry(id), 'rests', 1)
    end
    if state == 'dead' then
        redis.call('ZREM', base .. ':waiting', id)
        redis.call('ZREM', base .. ':held', id)
        redis.call('ZADD', base .. ':dead', id, id)
    elseif state == 'held' then
        redis.call('ZADD', base .. ':held', id, id)
    end
    return true
end
if not settle() then
    return {0, false}
elseif ARGV[13] == '' then
    return {1, false}
end
return {1, claim(holder, ARGV[13], '')}
