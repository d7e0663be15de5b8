"""Every line of the security cases has a test that names it, and the page that lists them is true."""

import re

from tests.security_cases import PAGE, REASONS, cases, find_tests


def test_every_case_has_a_test_or_a_reviewed_reason():
    tests = find_tests()
    assert not {name for name in cases() if name not in tests and name not in REASONS}
    assert not set(REASONS) & set(tests), "a case with a test needs no reason"
    assert not set(tests) - set(cases()), "a test names a case that does not exist"


def test_the_page_has_a_row_for_every_case_and_names_only_tests_that_exist_and_name_it():
    rows = dict(re.findall(r"^\| (sec-\d{3}) \| .+ \| (.+) \|$", PAGE.read_text(), re.M))
    assert list(rows) == list(cases())
    tests = find_tests()
    for name, proof in rows.items():
        named = re.findall(r"`([^`]+::[^`]+)`", proof)
        assert not set(named) - set(tests.get(name, ())), f"{name}: run python -m tests.security_cases"
        assert named or proof == REASONS[name]
