-- ARGV[3]: a generation to begin with, where there is none; the key of the names of all destinations; this one's name; pairs of a
-- pusher and which of its pushes was the last to be answered.
-- Returns the generation, the last number that was given out, and how many of those pushes are not there.
redis.call('SET', base .. ':generation', ARGV[3], 'NX')
redis.call('SADD', ARGV[4], ARGV[5])
local lost = 0
for place = 6, #ARGV, 2 do
    local last = redis.call('HGET', base .. ':pusher:' .. ARGV[place], 'push') or 0
    lost = lost + math.max(0, tonumber(ARGV[place + 1]) - tonumber(last))
end
return {redis.call('GET', base .. ':generation'), tonumber(redis.call('GET', base .. ':last') or 0), lost}
