-- ARGV[3]: holder, lease in milliseconds, the number of the entry that rests, if one does, how many may be claimed at a time, and which
-- of the holder's claims this is.
-- It is to work where memory is full, since what is delivered makes room.
return claim(ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
