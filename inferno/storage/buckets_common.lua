-- Shared by the bucket scripts: the arithmetic of inferno_native/bucket_math.pxd in doubles, exact below 2^53.
-- What was used of a window is a pair: whole permits and a fraction in units of 1/window_us permit.
-- A bucket is one string: updated_us, then per window: permits, fraction, quota.

local function number_text(value)
    return string.format('%.0f', value)
end

local function server_now()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

local function divide(value, by)
    local quotient = math.floor(value / by)
    return quotient, value - quotient * by
end

-- elapsed_us * quota as permits and fraction; the product has up to 63 bits, so quota is taken in two halves.
local function given_back(elapsed_us, quota, window_us)
    local high, low = divide(quota, 65536)
    local permits, fraction = divide(elapsed_us * high, window_us)
    local more, rest = divide(fraction * 65536, window_us)
    local last, last_rest = divide(elapsed_us * low, window_us)
    local carry, sum = divide(rest + last_rest, window_us)
    return permits * 65536 + more + last + carry, sum
end

-- (permits, fraction) minus (less, less_fraction), never below zero.
local function minus(permits, fraction, less, less_fraction, window_us)
    permits, fraction = permits - less, fraction - less_fraction
    if fraction < 0 then
        permits, fraction = permits - 1, fraction + window_us
    end
    if permits < 0 then
        return 0, 0
    end
    return permits, fraction
end

local function load_bucket(key, num_windows, now)
    local bucket = {updated = now}
    local text = redis.call('GET', key)
    local numbers = {}
    if text then
        for word in string.gmatch(text, '%S+') do
            numbers[#numbers + 1] = tonumber(word)
        end
        bucket.updated = numbers[1]
    end
    for window = 1, num_windows do
        bucket[window] = {
            permits = numbers[window * 3 - 1] or 0,
            fraction = numbers[window * 3] or 0,
            quota = numbers[window * 3 + 1] or -1,
        }
    end
    return bucket
end

-- Bring a bucket up to now; a clock that was set back costs the refill of that moment, no more.
local function refill(bucket, windows_us, now)
    local elapsed = math.max(0, now - bucket.updated)
    bucket.set_back = now < bucket.updated
    bucket.updated = now
    for window, used in ipairs(bucket) do
        if used.quota < 0 or elapsed >= windows_us[window] then
            used.permits, used.fraction = 0, 0
        else
            if used.permits >= used.quota then
                used.permits, used.fraction = used.quota, 0
            end
            local back, back_fraction = given_back(elapsed, used.quota, windows_us[window])
            used.permits, used.fraction = minus(used.permits, used.fraction, back, back_fraction, windows_us[window])
        end
    end
end

local function save_bucket(key, bucket, windows_us, slack_ms)
    local words = {number_text(bucket.updated)}
    local full_in_ms = 0
    for window, used in ipairs(bucket) do
        words[#words + 1] = number_text(used.permits)
        words[#words + 1] = number_text(used.fraction)
        words[#words + 1] = number_text(used.quota)
        if used.quota > 0 then
            full_in_ms = math.max(full_in_ms, (used.permits + 1) * windows_us[window] / used.quota / 1000)
        end
    end
    redis.call('SET', key, table.concat(words, ' '), 'PX', number_text(full_in_ms + slack_ms))
end

-- Settle one hold; its record goes first, so that a second settlement finds nothing.
local function settle(hold_key, spent, now, slack_ms)
    local text = redis.call('GET', hold_key)
    if not text then
        return 0
    end
    redis.call('DEL', hold_key)
    local record = cjson.decode(text)
    redis.call('SREM', record.owner, hold_key)
    if spent < 0 then
        spent = record.spent
    end
    for _, part in ipairs(record.parts) do
        if part.counting then
            redis.call('ZREM', part.key, hold_key)
        elseif redis.call('EXISTS', part.key) == 1 then
            local bucket = load_bucket(part.key, #part.windows_us, now)
            refill(bucket, part.windows_us, now)
            for _, used in ipairs(bucket) do
                if used.quota >= 0 then
                    if spent <= record.cost then
                        used.permits, used.fraction = minus(used.permits, used.fraction, record.cost - spent, 0, 1)
                    else
                        used.permits = used.permits + spent - record.cost
                        if used.permits >= used.quota then
                            used.permits, used.fraction = used.quota, 0
                        end
                    end
                end
            end
            save_bucket(part.key, bucket, part.windows_us, slack_ms)
        end
    end
    return 1
end
