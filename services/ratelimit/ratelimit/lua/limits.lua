-- Judges the requests of one batch in order, at one instant, on keys that all gateways share. The rules are those of
-- ratelimit/bucket.py, word for word.
--
-- KEYS     one for each caller and policy; all in the hash slot of {rl}
-- ARGV[1]  msgpack of [now_us, policies, policy_of_key, requests]
--            now_us         0: Redis' own clock; anything else: that instant
--            policies       [[algorithm, quota, window_us, burst], ...]  algorithm 3: token bucket, 4: sliding window
--            policy_of_key  for each key the 1-based place of its policy
--            requests       [[place in KEYS, ...], ...]
-- answers  msgpack of [now_us, [for each request: allowed (1/0), place in KEYS of the policy to tell about (0: none),
--            remaining, retry_us]]
--
-- A request that any policy refuses spends nothing in the others. Each key is read once and written at most once,
-- however many requests share it. A bucket is kept as an instant and the debt at it, a window as the instants of its
-- requests, oldest first; each number as a double. All are integers below 2^53, so doubles are exact.

local now, policies, policy_of_key, requests = unpack(cmsgpack.unpack(ARGV[1]))
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local TOKEN_BUCKET = 3
local DOUBLE, DOUBLE_BYTES = '<d', 8
local now_kept = struct.pack(DOUBLE, now)
local kept = KEYS[1] and redis.call('MGET', unpack(KEYS)) or {}
local states = {}

local function read_bucket(state, value)
  state.debt = 0
  if value then
    local at, debt = struct.unpack('<dd', value)
    state.debt = math.max(0, debt - math.max(0, now - at) * state.quota)
  end
end

local function read_window(state, value)
  local from, first = 1, nil
  value = value or ''
  while from <= #value do
    first = struct.unpack(DOUBLE, value, from)
    if now - state.window < first and first <= now + state.window then break end
    first, from = nil, from + DOUBLE_BYTES
  end
  state.instants, state.first, state.added = string.sub(value, from), first, 0
  state.count = #state.instants / DOUBLE_BYTES
end

local function state_of(place)
  local state = states[place]
  if not state then
    local policy = policies[policy_of_key[place]]
    state = {bucket = policy[1] == TOKEN_BUCKET, quota = policy[2], window = policy[3], burst = policy[4]}
    local read = state.bucket and read_bucket or read_window
    read(state, kept[place])
    states[place] = state
  end
  return state
end

local function wait_us(state)
  if state.bucket then
    return math.max(0, math.ceil((state.debt + state.window * (1 - state.burst)) / state.quota))
  end
  return state.count < state.quota and 0 or state.first + state.window - now
end

local function remaining(state)
  if state.bucket then
    return state.burst - math.ceil(state.debt / state.window)
  end
  return state.quota - state.count
end

local function spend(state)
  state.spent = true
  if state.bucket then
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

local function write(key, state)
  local value, lasts_us
  if state.bucket then
    value, lasts_us = now_kept .. struct.pack(DOUBLE, state.debt), state.debt / state.quota
  else
    value, lasts_us = state.instants .. string.rep(now_kept, state.added), state.window
  end
  redis.call('SET', key, value, 'PX', math.ceil(lasts_us / 1000) + 1)
end

local answer = {}
for _, places in ipairs(requests) do
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = judge(places)
end
for place, state in pairs(states) do
  if state.spent then write(KEYS[place], state) end
end
return cmsgpack.pack({now, answer})
