-- Keep open holds alive and remember what they spent so far.
-- KEYS: the owner's set, then the records. ARGV: now_us or '', slack_ms, lease_us, hold_ttl_ms, then spent per record.

local now = ARGV[1] ~= '' and tonumber(ARGV[1]) or server_now()
local slack_ms, lease_us, hold_ttl_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
for index = 2, #KEYS do
    local text = redis.call('GET', KEYS[index])
    if text then
        local record = cjson.decode(text)
        record.spent = tonumber(ARGV[index + 3])
        redis.call('SET', KEYS[index], cjson.encode(record), 'PX', number_text(hold_ttl_ms))
        for _, part in ipairs(record.parts) do
            if part.counting then
                redis.call('ZADD', part.key, 'XX', number_text(now + lease_us), KEYS[index])
                redis.call('PEXPIRE', part.key, number_text(lease_us / 1000 + slack_ms))
            end
        end
    end
end
redis.call('PEXPIRE', KEYS[1], number_text(hold_ttl_ms))
return #KEYS - 1
