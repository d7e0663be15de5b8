-- Charge `cost` to all parts or to none.
-- KEYS: one per part; for a hold then its record and its owner's set.
-- ARGV: now_us or '', cost, slack_ms, spent (-1: no hold), lease_us, hold_ttl_ms, then per part:
--       '1' or '0' (counting), number of windows, and per window: window_us, quota (-1: no limit).
-- Returns {status, then per part and window: permits, fraction}: what is used, after the charge if it was admitted.

local ADMITTED, REFUSED, TOO_LARGE = 0, 1, 2
local now = ARGV[1] ~= '' and tonumber(ARGV[1]) or server_now()
local cost, slack_ms, spent = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease_us, hold_ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local is_hold = spent >= 0
local num_parts = is_hold and #KEYS - 2 or #KEYS
local hold_key, owner_key = KEYS[num_parts + 1], KEYS[num_parts + 2]
local status = ADMITTED
local parts = {}
local position = 7

for index = 1, num_parts do
    local part = {key = KEYS[index], counting = ARGV[position] == '1', windows_us = {}, quotas = {}}
    for window = 1, tonumber(ARGV[position + 1]) do
        part.windows_us[window] = tonumber(ARGV[position + window * 2])
        part.quotas[window] = tonumber(ARGV[position + window * 2 + 1])
    end
    position = position + 2 + #part.windows_us * 2
    if part.counting then
        redis.call('ZREMRANGEBYSCORE', part.key, '-inf', number_text(now))
        part.bucket = {{permits = redis.call('ZCARD', part.key), fraction = 0, quota = part.quotas[1]}}
    else
        part.bucket = load_bucket(part.key, #part.windows_us, now)
        for window, used in ipairs(part.bucket) do
            used.quota = part.quotas[window]
        end
        refill(part.bucket, part.windows_us, now)
    end
    for _, used in ipairs(part.bucket) do
        if used.quota >= 0 then
            if cost > used.quota then
                status = TOO_LARGE
            elseif used.permits + (used.fraction > 0 and 1 or 0) + cost > used.quota and status == ADMITTED then
                status = REFUSED
            end
        end
    end
    parts[index] = part
end

if status == ADMITTED and cost > 0 then
    local record = {cost = cost, spent = spent, owner = owner_key, parts = {}}
    for index, part in ipairs(parts) do
        for _, used in ipairs(part.bucket) do
            if used.quota >= 0 then
                used.permits = used.permits + cost
            end
        end
        if part.counting then
            redis.call('ZADD', part.key, number_text(now + lease_us), hold_key)
            redis.call('PEXPIRE', part.key, number_text(lease_us / 1000 + slack_ms))
        else
            save_bucket(part.key, part.bucket, part.windows_us, slack_ms)
        end
        record.parts[index] = {key = part.key, counting = part.counting, windows_us = part.windows_us}
    end
    if is_hold then
        redis.call('SET', hold_key, cjson.encode(record), 'PX', number_text(hold_ttl_ms))
        redis.call('SADD', owner_key, hold_key)
        redis.call('PEXPIRE', owner_key, number_text(hold_ttl_ms))
    end
end

if status ~= ADMITTED then
    for _, part in ipairs(parts) do
        if part.bucket.set_back then
            save_bucket(part.key, part.bucket, part.windows_us, slack_ms)  -- or nothing refills until the old time comes
        end
    end
end

local result = {status}
for _, part in ipairs(parts) do
    for _, used in ipairs(part.bucket) do
        result[#result + 1] = number_text(used.permits)
        result[#result + 1] = number_text(used.fraction)
    end
end
return result
