"""Every way in which the gateway says no, and the page behind each. Pure."""

from service.problem_details import Kind

MALFORMED = Kind(
    "malformed-request",
    400,
    "Malformed request",
    "The body is not one JSON value in UTF-8, a field of it appears twice, the length is not a number, or what was "
    "sent is not HTTP/1.1 as it should be (two lengths, a broken chunk, a bare line feed, `%` without two digits, "
    "more than 16 requests ahead of their answers). Then the connection is closed.",
    "Correct the request.",
)
KEY_INVALID = Kind(
    "idempotency-key-invalid",
    400,
    "Idempotency-Key missing or invalid",
    "Every purchase, and every restock, carries an `Idempotency-Key` header: 1 to 255 printable ASCII characters, "
    "bare or in quotation marks, sent once.",
    "Make a new random key (a UUID, say) for each new purchase, and send the same key whenever you repeat that "
    "purchase.",
)
UNAUTHENTICATED = Kind(
    "unauthenticated",
    401,
    "Authentication required",
    "The request does not prove who sends it: it carries no token, or one that is not believed; `detail` says why. "
    "A token has at most 8 KiB. Demonstrations take the name from `X-User-Id` instead; operators send "
    "`Authorization: Bearer` with their key, or with a token that has the role `admin`.",
    "Send the missing credentials, or fetch a new token.",
)
SIGNATURE_INVALID = Kind(
    "signature-invalid",
    401,
    "Invalid signature",
    "A report of a payment provider carries `Stampede-Signature: t=<seconds since the epoch>,v1=<hex>`, where v1 is "
    "HMAC-SHA256 of `<t>.<body>` with the secret shared with this installation. It was missing, made with another "
    "secret or for another body, or `t` is more than five minutes from now.",
    "Sign the very bytes that are sent, with the time of sending; sign anew for each attempt.",
)
FORBIDDEN = Kind(
    "forbidden",
    403,
    "Forbidden",
    "It is known who you are, and you are not an operator: the token has no role `admin`.",
    "Ask with a token that has the role, or with the operators' key.",
)
NOT_FOUND = Kind(
    "not-found",
    404,
    "Not found",
    "There is no such route, or the caller has no purchase with this id. Somebody else's purchase looks exactly like "
    "one that does not exist.",
    "Check the address, and that you ask as the buyer who made the purchase.",
)
UNKNOWN_PRODUCT = Kind(
    "unknown-product",
    404,
    "Unknown product",
    "No product has this id. Nothing was logged.",
    "Look the id up with `GET /v1/products`.",
)
METHOD_NOT_ALLOWED = Kind(
    "method-not-allowed",
    405,
    "Method not allowed",
    "The route exists, but not with this method; `Allow` names those it has.",
    "Use one of them.",
)
REQUEST_TIMEOUT = Kind(
    "request-timeout",
    408,
    "Request timeout",
    "Head and body must be complete within 10 s of the first byte. Nothing was done, and the connection was closed.",
    "Send the same request again, with the same Idempotency-Key, on a new connection.",
    retryable=True,
)
SOLD_OUT = Kind(
    "sold-out",
    409,
    "Sold out",
    "Nothing is available, so the gateway did not put the purchase into the log: this is no outcome, there is no "
    "`Location`, and the same key may win later. `may_reopen` says whether units are on hold that may come back: when "
    "a payment fails or a hold ends, they go to whoever asks next.",
    "While `may_reopen` is true, try again from time to time, with the same key or a new one.",
    retryable=True,
)
NOT_OPEN = Kind(
    "not-open",
    409,
    "Sale not open",
    "The sale has not begun, is paused, or is over; `sale_status` says which. Nothing was logged and the key is not "
    "used up.",
    "Come back when `GET /v1/products/{product_id}` shows `open`; `opens_at` and `server_time` are in its answer.",
    retryable=True,
)
REJECTED = Kind(
    "rejected",
    409,
    "Purchase rejected",
    "The inventory has decided, and the decision is in the log: `reason` is `sold_out`, `not_enough_left`, "
    "`buyer_limit`, `not_open`, `closed`, `paused` or `unknown_product`. `Location` names the purchase.",
    "Use a new key for a new try. The rejection holds for as long as the log remembers it (at least the last 250,000 "
    "of its partition).",
)
NOT_CANCELLABLE = Kind(
    "not-cancellable",
    409,
    "Purchase already ended",
    "A rejected purchase took nothing, and a released one was given back; `purchase_status` says which, `reason` why. "
    "There is nothing left to cancel.",
    "Nothing. If money had been taken, `GET` on the purchase shows what became of the refund.",
)
IN_FLIGHT = Kind(
    "in-flight",
    409,
    "Another request with this key is in flight",
    "A request with the same key and another body was accepted before this one, or is on its way to the log, and is "
    "not decided yet. Nothing of this request was logged.",
    "Repeat it after `Retry-After` seconds. If the first request is what you meant, send that one again.",
    retryable=True,
)
PRODUCT_CONFLICT = Kind(
    "product-conflict",
    409,
    "Product conflict",
    "The product exists with other content than the request lists, or it was retired.",
    "Look at the product; change it with `PATCH`, or list another one.",
)
RESTOCK_REJECTED = Kind(
    "restock-rejected",
    409,
    "Restock rejected",
    "The change would take away more than is available, or go above what can be counted; `reason` says which. Nothing "
    "was changed.",
    "Ask for a smaller change.",
)
TOO_LARGE = Kind(
    "too-large",
    413,
    "Body too large",
    "A body has at most 4,096 bytes. It was refused before it was read, and the connection was closed.",
    "Send only the fields that the documentation names.",
)
URL_TOO_LONG = Kind(
    "url-too-long",
    414,
    "URL too long",
    "Path and query have at most 8,192 bytes. The connection was closed.",
    "Send only the parameters that the documentation names.",
)
UNSUPPORTED_MEDIA = Kind(
    "unsupported-media-type",
    415,
    "Unsupported media type",
    "Bodies are JSON, said by `Content-Type: application/json`, and come without a `Content-Encoding`.",
    "Correct the headers.",
)
INVALID_BODY = Kind(
    "invalid-body",
    422,
    "Validation failed",
    "The body is JSON, but a field is missing, unknown, of the wrong type or out of range; or a parameter of the "
    "query is, a cursor included: it is good for the caller, the route and the filters it was made for. `detail` "
    "names it.",
    "Correct the request.",
)
KEY_REUSED = Kind(
    "idempotency-key-reused",
    422,
    "Idempotency-Key reused with another body",
    "The first request with this key for this product had another body, and is decided. A key stands for one purchase "
    "of a product.",
    "Use a new key for a new purchase.",
)
RATE_LIMITED = Kind(
    "rate-limited",
    429,
    "Too many requests",
    "You, or your network address, asked more often than allowed. `RateLimit-Policy` and `RateLimit` tell the limit "
    "and what is left of it. Nothing was logged.",
    "Wait for `Retry-After` seconds; the same key may be used again.",
    retryable=True,
)
HEADERS_TOO_LARGE = Kind(
    "headers-too-large",
    431,
    "Headers too large",
    "A request has at most 100 headers and 16 KiB of them. The connection was closed.",
    "Send fewer or shorter headers; a huge token or a pile of cookies is the usual cause. A token that has room here, "
    "but more than 8 KiB, is refused as `unauthenticated`.",
)
INTERNAL = Kind(
    "internal-error",
    500,
    "Internal error",
    "The gateway has a defect. Whether a purchase was accepted is not known.",
    "Repeat the request with the same key, and tell the operators the `trace_id`.",
    retryable=True,
)
OVERLOADED = Kind(
    "overloaded",
    503,
    "Overloaded",
    "More requests wait than can be answered in time, or the gateway cannot see the end of the log just now. Nothing "
    "was done.",
    "Wait for `Retry-After` seconds and repeat the request with the same key.",
    retryable=True,
)
OUTCOME_UNKNOWN = Kind(
    "outcome-unknown",
    503,
    "Outcome unknown",
    "The log did not acknowledge the purchase in time. It may be in the log, or not; `outcome` is `unknown`.",
    "Repeat the request with the same key until you get another answer: a purchase is never made twice for one key.",
    retryable=True,
)
UNAVAILABLE = Kind(
    "unavailable",
    503,
    "Service unavailable",
    "A part of the system that is needed for this answer is unavailable. Purchases that were accepted are safe.",
    "Wait for `Retry-After` seconds and try again.",
    retryable=True,
)

KINDS: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
