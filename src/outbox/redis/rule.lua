-- ARGV[3]: the rule by which messages are given lanes from now on. Returns the rule that there is; an older one if entries wait that were
-- given their lanes by it.
local rule = redis.call('GET', base .. ':rule') or 'destination'
local last = redis.call('ZRANGE', base .. ':waiting', -1, -1)[1]
if rule == ARGV[3] or last and lanes().lane_of(last) then
    return rule
end
redis.call('SET', base .. ':rule', ARGV[3])
if ARGV[3] == 'destination' then
    redis.call('DEL', base .. ':lanes_from')
else
    redis.call('SET', base .. ':lanes_from', (redis.call('GET', base .. ':last') or 0) + 1)
end
return ARGV[3]
