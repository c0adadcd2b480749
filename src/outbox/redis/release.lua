-- ARGV[3]: holder; then pairs of an entry and the token by which it is claimed. Gives back the lease, if it is the holder's, and those
-- claims.
if redis.call('GET', base .. ':holder') == ARGV[3] then
    redis.call('DEL', base .. ':holder')
    ring(base, ':free')
end
for place = 4, #ARGV, 2 do
    local lanes = lanes()
    local lane = lanes.flight_of(ARGV[place], ARGV[place + 1])
    if lane then
        lanes.end_flight(lane)
        ring(base, ':bell')
    end
end
return 0
