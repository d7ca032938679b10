-- All limit checks of one tick in one call: what ratelimit/bucket.py does, on keys every gateway shares.
--
-- KEYS     one per caller and policy, all in the hash slot of {rl}
-- ARGV[1]  msgpack of [now_us, policies, policy_of_key, requests]
--            now_us         0: Redis' own clock; anything else: that instant
--            policies       [[algorithm, quota, window_us, burst], ...]  algorithm 1: token bucket, 2: sliding window
--            policy_of_key  for each of KEYS the 1-based place of its policy
--            requests       [[1-based place in KEYS, ...], ...]
-- answers  {now_us, then for each request: allowed (1/0), place in KEYS of the policy to tell about (0: none),
--           remaining, retry_us}
--
-- Requests are judged in order at one instant; one that any policy refuses spends nothing anywhere. Each key is
-- read once and written once, however many requests share it. All numbers are integers below 2^53, so Lua's are
-- exact. A step on a request other than a limit (a claim on its id) belongs into `judge`, before the limits.

local payload = cmsgpack.unpack(ARGV[1])
local now, policies, policy_of_key, requests = payload[1], payload[2], payload[3], payload[4]
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local TOKEN_BUCKET = 1
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
    local policy = policies[policy_of_key[place]]
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

local answer = {now}
for _, places in ipairs(requests) do
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = judge(places)
end
for place, key in ipairs(KEYS) do
  if states[place] and states[place].spent then write(key, states[place]) end
end
return answer
