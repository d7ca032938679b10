-- The policies in force, kept as `version text`; a version is the instant of the change in ms, so it only rises.
--
-- KEYS[1]  {rl}:policies
-- ARGV     the version that must not be overtaken by an older one (0: a change, now), the text
-- answers  the version that is kept now, as a string
local version = tonumber(ARGV[1])
local kept = tonumber(string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) ') or 0)
if version == 0 then
  local time = redis.call('TIME')
  version = math.max(time[1] * 1000 + math.floor(time[2] / 1000), kept + 1)
end
if version > kept then
  kept = version
  redis.call('SET', KEYS[1], string.format('%.0f', version) .. ' ' .. ARGV[2])
end
return string.format('%.0f', kept)
