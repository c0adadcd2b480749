-- ARGV[3]: holder. Gives the lease back, if it is the holder's.
if redis.call('GET', base .. ':holder') == ARGV[3] then
    redis.call('DEL', base .. ':holder')
    ring(base, ':free')
end
return 0
