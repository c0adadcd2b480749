-- (Not flagged as reading only: a replica, which may be behind, is to refuse it.)
-- ARGV[3]: which entries, after which number, how many, and whether with their messages. Which: a state; 'queue', all but the dead;
-- 'stopped', the held and the dead; 'one', the entry of this number. Returns them in their order.
local which, after, limit, whole = ARGV[3], '(' .. ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local ids = {}
local function take(set, state)
    local from = after
    repeat
        local page = redis.call('ZRANGEBYSCORE', base .. set, from, '+inf', 'LIMIT', 0, math.max(limit, 256))
        for _, id in ipairs(page) do
            if not state or redis.call('HGET', entry(id), 'state') == state then
                table.insert(ids, tonumber(id))
            end
        end
        from = '(' .. (page[#page] or '')
    until #page == 0 or #ids >= limit
end
if limit == 0 then
    return {}
elseif which == 'one' then
    if redis.call('EXISTS', entry(ARGV[4])) == 1 then
        table.insert(ids, tonumber(ARGV[4]))
    end
elseif which == 'queue' then
    take(':waiting')
elseif which == 'dead' or which == 'held' then
    take(':' .. which)
elseif which == 'stopped' then
    take(':held')
    local held = ids
    ids = {}
    take(':dead')
    for _, id in ipairs(held) do
        table.insert(ids, id)
    end
    table.sort(ids)
elseif which == 'sending' then
    -- Where there are no lanes it is the head, if there is one.
    local suspects = {first(':waiting')}
    for _, claimed in ipairs(redis.call('HVALS', base .. ':busy')) do
        table.insert(suspects, string.match(claimed, '%d+'))
    end
    for _, id in ipairs(suspects) do
        local is_new = #ids == 0 or ids[1] ~= tonumber(id)
        if is_new and tonumber(id) > tonumber(ARGV[4]) and redis.call('HGET', entry(id), 'state') == which then
            table.insert(ids, tonumber(id))
        end
    end
    table.sort(ids)
else
    take(':waiting', which)
end
local entries = {}
for place = 1, math.min(#ids, limit) do
    local id = ids[place]
    entries[place] = {id, redis.call('HSTRLEN', entry(id), 'message'), redis.call('HMGET', entry(id), unpack(FIELDS)),
        whole and redis.call('HGET', entry(id), 'message') or false}
end
return entries
