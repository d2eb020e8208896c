"""Every fault of faults.py has a test, every mark names one of them, and docs/faults.md says which test shows which."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import FAULTS, PAGE, marks_of, page, shown

KNOWN = [fault for faults in FAULTS.values() for fault in faults]


def test_every_fault_stands_once_in_the_list() -> None:
    assert len(set(KNOWN)) == len(KNOWN)


def test_every_fault_has_a_test() -> None:
    tests = shown()
    without = [fault for fault in KNOWN if fault not in tests]
    assert not without, "no test is marked with " + "; ".join(without)


def test_every_mark_is_a_sentence_of_the_list() -> None:
    strange = {fault: tests for fault, tests in shown().items() if fault not in KNOWN}
    assert not strange, f"not in tests/support/faults.py: {strange}"


def test_the_page_is_what_the_marks_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "stale: python tests/support/faults.py writes it"


def test_marks_are_read_from_every_place_and_missed_in_none(tmp_path: Path) -> None:
    file = tmp_path / "test_made.py"
    file.write_text(
        'import pytest\nONE = pytest.mark.fault("one")\n'
        '@ONE\n@pytest.mark.slow\n@pytest.mark.fault(\n    "two"\n)\ndef test_first(): ...\n'
        "@ONE\ndef test_second(): ...\n"
    )
    assert marks_of(file) == [("one", "test_first"), ("two", "test_first"), ("one", "test_second")]
    assert shown(tmp_path)["one"] == [("test_made.py", "test_first"), ("test_made.py", "test_second")]
    for lost, words in (
        ('ONE = pytest.mark.fault("one")\n', "test_made.py:2: the fault 'one' stands on no test"),
        ('@pytest.mark.fault("one")\ndef helper(): ...\n', "stands on no test"),
        ('pytestmark = pytest.mark.fault("one")\n', "stands on no test"),
        ('@pytest.mark.fault("one", "two")\ndef test_first(): ...\n', "one sentence"),
        ("@pytest.mark.fault(NAME)\ndef test_first(): ...\n", "one sentence"),
        ("@pytest.mark.fault\ndef test_first(): ...\n", "without its sentence"),
    ):
        file.write_text("import pytest\n" + lost)
        with pytest.raises(ValueError, match=words):
            marks_of(file)
