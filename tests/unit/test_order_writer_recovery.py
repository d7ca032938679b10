"""Which progress in Postgres can only be that of an older database."""

import pytest

from eventlog.reader import LogBroken
from order_writer.recovery import check_all_known, check_known


def test_progress_that_went_back_is_an_older_database() -> None:
    """Of any partition, also of one that another process applies, also one whose progress is gone."""
    seen: dict[int, int] = {}
    check_all_known(seen, {3: 10})
    check_all_known(seen, {3: 12, 4: 1})
    assert seen == {3: 12, 4: 1}
    for found in ({3: 11, 4: 1}, {3: 12}, {}):
        with pytest.raises(LogBroken, match=r"older database was restored.*order_writer recover"):
            check_all_known(seen, found)
    assert seen == {3: 12, 4: 1}


def test_equal_and_newer_progress_is_well() -> None:
    """Nobody commits to the group before Postgres has it; the group may well be behind."""
    check_known(3, known=10, applied=10)
    check_known(3, known=11, applied=10)
    with pytest.raises(LogBroken, match=r"stampede.decisions/3 was applied up to 11 before, .* only up to 10"):
        check_known(3, known=10, applied=11)
