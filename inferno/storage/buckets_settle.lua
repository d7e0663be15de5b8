-- Settle holds, each once. KEYS: their records. ARGV: now_us or '', slack_ms, then per hold what it spent (-1: as noted).
-- Returns how many this call settled.

local now = ARGV[1] ~= '' and tonumber(ARGV[1]) or server_now()
local settled = 0
for index, hold_key in ipairs(KEYS) do
    settled = settled + settle(hold_key, tonumber(ARGV[index + 2]), now, tonumber(ARGV[2]))
end
return settled
