"""`make coverage`: the functions that no test entered are named."""

from tools.coverage_gaps import table

Region = dict[str, list[int]]
RAN: Region = {"executed_lines": [1], "missing_lines": [2]}
LEFT: Region = {"executed_lines": [], "missing_lines": [3]}
EMPTY: Region = {"executed_lines": [], "missing_lines": []}


def report(**functions: Region) -> dict[str, object]:
    """What coverage says of two files: these functions, and one that is all covered. Dots are written as `__`."""
    named = {name.replace("__", "."): each for name, each in functions.items()}
    return {"files": {"b.py": {"functions": {"": RAN, "covered": RAN}}, "a.py": {"functions": {"": RAN, **named}}}}


def test_each_function_that_was_not_entered_is_named() -> None:
    """Not those that were entered and left early, nor those without a statement, nor the module's own lines."""
    said = table(report(entered=RAN, left=LEFT, port=EMPTY, outer__inner=LEFT))
    assert said == ["a.py: left, outer.inner", "2 of 4 functions were entered"]


def test_a_class_that_nobody_used_is_one_word() -> None:
    """A class with one used method has the others named."""
    said = table(report(Unused__one=LEFT, Unused__two=LEFT, Used__one=LEFT, Used__two=RAN))
    assert said == ["a.py: Unused.*, Used.one", "2 of 5 functions were entered"]
