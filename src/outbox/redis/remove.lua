-- ARGV[3]: the key of the names of all destinations, and this one's name. Removes the destination; returns 0 if it has entries.
if redis.call('ZCARD', base .. ':waiting') + redis.call('ZCARD', base .. ':dead') > 0 then
    return 0
end
redis.call('SREM', ARGV[3], ARGV[4])
for _, name in ipairs({':generation', ':last', ':holder', ':fence', ':settled', ':paused', ':bell', ':free', ':rule',
    ':lanes_from', ':lane_of', ':flight', ':busy'}) do
    redis.call('DEL', base .. name)
end
return 1
