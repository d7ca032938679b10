-- The policies in force, kept as `version text`. A version is the instant of the change in ms, so it only rises; 0: the
-- policies were never changed.
--
-- KEYS[1]  {rl}:policies
-- ARGV     the version and the text that the caller knows; 'change': put this text in force now
-- answers  what is kept now, `version text`
--
-- The newer one stays. It is written even when nothing is new: where a write fails, no limit can be counted either, and
-- the caller must learn that here.
local version = tonumber(ARGV[1])
local kept = redis.call('GET', KEYS[1]) or ''
local kept_version = tonumber(string.match(kept, '^(%d+) ') or 0)
if ARGV[3] == 'change' then
  local time = redis.call('TIME')
  version = math.max(time[1] * 1000 + math.floor(time[2] / 1000), kept_version + 1, version + 1)
end
if version >= kept_version then
  kept = string.format('%.0f', version) .. ' ' .. ARGV[2]
end
redis.call('SET', KEYS[1], kept)
return kept
