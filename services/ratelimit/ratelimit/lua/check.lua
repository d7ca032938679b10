-- One tick in one call: what became of the last ticks' claims, claims and limits of this one, and who this server is.
-- The limits are those of ratelimit/bucket.py, word for word, on keys that every gateway shares.
--
-- KEYS     {rl}:sentinel, {rl}:policies, then one per caller and policy, then claims; all in the hash slot of {rl}
-- ARGV[1]  msgpack of [now_us, policies, policy_of_key, requests, claims, settled, owner, looked_at]
--            now_us         0: Redis' own clock; anything else: that instant
--            policies       [[algorithm, quota, window_us, burst], ...]  algorithm 1: token bucket, 2: sliding window
--            policy_of_key  for each caller's key the 1-based place of its policy
--            requests       [[place in KEYS, ...], ...]
--            claims         none, or for each request [place in KEYS, fingerprint, buyer, wanted (1/0)]
--            settled        [[place in KEYS, fingerprint, buyer, how], ...]  how: a accepted, o open again, d dropped
--            owner          whose claims these are
--            looked_at      the place in KEYS of a claim to tell, or 0
-- answers  msgpack of [now_us, stamp, policies' text, the claim looked at,
--            [for each request: allowed (1/0), place in KEYS of the policy to tell about (0: none), remaining, retry_us,
--             known]]
--          known  0 new, 1 accepted before, 2 claimed for another body, 3 in flight, 4 in flight for too long: once more
--          stamp  of this very memory: it changes when the server is flushed, restarted, replaced, or evicts keys
--
-- Requests are judged in order at one instant; one that any policy refuses spends nothing anywhere and claims nothing.
-- A known claim spends nothing. Each limit's key is read once and written once, however many requests share it. All
-- numbers are integers below 2^53, so Lua's are exact.

local now, policies, policy_of_key, requests, claims, settled, owner, looked_at =
  unpack(cmsgpack.unpack(ARGV[1]), 1, 8)
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local TOKEN_BUCKET = 1
local NEW, ACCEPTED, OTHER, IN_FLIGHT, AGAIN = 0, 1, 2, 3, 4
local CLAIM_MS, DEADLINE_MS = '86400000', 10000
local FIRST = 2 -- keys before the callers'
local now_ms = math.floor(now / 1000)
local states = {}

local function read_bucket(key, state)
  local at, debt = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  state.debt = at and math.max(0, debt - math.max(0, now - at) * state.quota) or 0
end

local function read_window(key, state)
  local first = tonumber(redis.call('LINDEX', key, 0) or nil)
  while first and not (now - state.window < first and first <= now + state.window) do
    redis.call('LPOP', key)
    first = tonumber(redis.call('LINDEX', key, 0) or nil)
  end
  state.first, state.count, state.added = first, first and redis.call('LLEN', key) or 0, 0
end

local function state_of(place)
  local state = states[place]
  if not state then
    local policy = policies[policy_of_key[place - FIRST]]
    state = {place = place, algorithm = policy[1], quota = policy[2], window = policy[3], burst = policy[4]}
    local read = state.algorithm == TOKEN_BUCKET and read_bucket or read_window
    read(KEYS[place], state)
    states[place] = state
  end
  return state
end

local function wait_us(state)
  if state.algorithm == TOKEN_BUCKET then
    return math.max(0, math.ceil((state.debt + state.window * (1 - state.burst)) / state.quota))
  end
  return state.count < state.quota and 0 or state.first + state.window - now
end

local function remaining(state)
  if state.algorithm == TOKEN_BUCKET then
    return state.burst - math.ceil(state.debt / state.window)
  end
  return state.quota - state.count
end

local function spend(state)
  state.spent = true
  if state.algorithm == TOKEN_BUCKET then
    state.debt = state.debt + state.window
  else
    state.count, state.added, state.first = state.count + 1, state.added + 1, state.first or now
  end
end

local function judge(places)
  local refusing, retry = 0, 0
  for _, place in ipairs(places) do
    local wait = wait_us(state_of(place))
    if wait > retry then refusing, retry = place, wait end
  end
  if refusing > 0 then return 0, refusing, 0, retry end
  local tightest, least = 0, 0
  for _, place in ipairs(places) do
    local state = states[place]
    spend(state)
    local left = remaining(state)
    if tightest == 0 or left < least then tightest, least = place, left end
  end
  return 1, tightest, least, 0
end

-- A claim is `state until_ms owner fingerprint buyer`; state i: in flight until then, a: accepted (at that instant).
local function write_claim(key, state, until_ms, fingerprint, buyer)
  local value = table.concat({state, string.format('%.0f', until_ms), owner, fingerprint, buyer}, ' ')
  redis.call('SET', key, value, 'PX', CLAIM_MS)
end

local function settle(place, fingerprint, buyer, how)
  local key = KEYS[place]
  local state, whose = string.match(redis.call('GET', key) or '', '^(%a) %d+ (%S+)')
  if how == 'a' then
    if state ~= 'a' then write_claim(key, 'a', now_ms, fingerprint, buyer) end
  elseif state == 'i' and whose == owner then
    if how == 'd' then redis.call('DEL', key) else write_claim(key, 'i', 0, fingerprint, buyer) end
  end
end

local function known(claim)
  local state, until_ms, fingerprint = string.match(redis.call('GET', KEYS[claim[1]]) or '', '^(%a) (%d+) %S+ (%S+)')
  if not state then return NEW end
  if state == 'i' and tonumber(until_ms) < now_ms then return AGAIN end
  if fingerprint ~= claim[2] then return OTHER end
  return state == 'a' and ACCEPTED or IN_FLIGHT
end

local instant = string.format('%.0f', now)
local function write(key, state)
  if state.algorithm == TOKEN_BUCKET then
    local ttl_ms = math.ceil(state.debt / state.quota / 1000) + 1
    redis.call('SET', key, instant .. ' ' .. string.format('%.0f', state.debt), 'PX', string.format('%.0f', ttl_ms))
  else
    for _ = 1, state.added do redis.call('RPUSH', key, instant) end
    redis.call('PEXPIRE', key, string.format('%.0f', math.ceil(state.window / 1000) + 1))
  end
end

-- Where INFO is not to be had, the sentinel alone has to tell a flushed server from a full one.
local function told(section, pattern)
  local info = redis.pcall('INFO', section)
  return type(info) == 'string' and string.match(info, pattern) or '-'
end

for _, each in ipairs(settled) do settle(each[1], each[2], each[3], each[4]) end
local answer = {}
for number, places in ipairs(requests) do
  local n, claim = #answer, claims[number]
  local how = claim and known(claim) or NEW
  if how == NEW then
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = judge(places)
  else
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = 1, 0, 0, 0
  end
  if how == AGAIN or (how == NEW and claim and claim[4] == 1 and answer[n + 1] == 1) then
    write_claim(KEYS[claim[1]], 'i', now_ms + DEADLINE_MS, claim[2], claim[3])
  end
  answer[n + 5] = how
end
for place, state in pairs(states) do
  if state.spent then write(KEYS[place], state) end
end
local sentinel = redis.call('GET', KEYS[1]) or ''
local stamp = sentinel .. ' ' .. told('server', 'run_id:(%x+)') .. ' ' .. told('stats', 'evicted_keys:(%d+)')
local looked = looked_at > 0 and redis.call('GET', KEYS[looked_at]) or ''
return cmsgpack.pack({now, stamp, redis.call('GET', KEYS[2]) or '', looked, answer})
