"""TODO"""

from gateway.http import problems

_BY_STATUS = {
    400: problems.MALFORMED,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    422: problems.INVALID_BODY,
}
