-- Settle all that a dead owner left open, as it had noted. KEYS: the owner's set. ARGV: now_us or '', slack_ms.

local now = ARGV[1] ~= '' and tonumber(ARGV[1]) or server_now()
local settled = 0
for _, hold_key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    settled = settled + settle(hold_key, -1, now, tonumber(ARGV[2]))
end
redis.call('DEL', KEYS[1])
return settled
