"""Token bucket and sliding window over Redis: a library the gateway embeds, and a small service.

`policy` and `bucket` are pure; `limiter` talks to Redis; `app` is the service. Import from those modules.
"""
