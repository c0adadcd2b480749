-- KEYS[1]: the destination; ARGV: holder. Gives the lease back, if it is the holder's.
if redis.call('GET', KEYS[1] .. ':holder') == ARGV[1] then
    return redis.call('DEL', KEYS[1] .. ':holder')
end
return 0
