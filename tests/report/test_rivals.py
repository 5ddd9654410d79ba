"""Rows of a comparison are held apart where they are not alike, and what they lack is said."""

from __future__ import annotations

import pytest

from polarspike.errors import SpecError
from polarspike.report.rivals import grouped, rivals_table
from polarspike.report.rivals_page import rivals_page
from tests.report.test_report import KINDS, ROWS

KEY = ("digits", "cnn", "ours", "4", "", "epochs")


def test_of_a_seed_that_was_measured_again_the_last_row_counts() -> None:
    again = {**ROWS[1], "accuracy": "90"}
    assert [row["accuracy"] for row in grouped([*ROWS, again])[KEY][1]] == ["90", "94"]


@pytest.mark.parametrize("seed", ["0", "7"])  # the same one, and another, whose mean would be of two things
def test_two_setups_of_one_method_are_not_merged(seed: str) -> None:
    alike = [{**row, "setup": "aaa"} for row in ROWS]
    assert grouped(alike).keys() == grouped(ROWS).keys()
    other = {**ROWS[1], "seed": seed, "setup": "bbb"}
    with pytest.raises(
        SpecError, match=r"digits, cnn, ours 4 levels: expected one setup, got 'aaa' and 'bbb'; .* one page"
    ):
        grouped([*alike, other])
    assert grouped([*alike, {**other, "network": "vgg"}]).keys() - grouped(alike).keys()  # another network's is its own


def test_what_does_not_apply_names_its_network() -> None:
    refused = next(row for row in ROWS if not row["accuracy"])
    lines = rivals_table([*ROWS, {**refused, "network": "vit"}]).splitlines()
    assert lines[-2:] == ["digits, cnn: qcfs: not applicable: no", "digits, vit: qcfs: not applicable: no"]


def test_a_page_begins_with_what_is_missing() -> None:
    said = ("2 of 8 runs are missing", "digits, cnn: lif: failed: the loss is nan")
    first, *others = rivals_page(ROWS, KINDS, [], missing=said)
    assert (first.title, first.text) == ("Not complete", said)
    assert others == rivals_page(ROWS, KINDS, [])
    assert [section.title for section in rivals_page([], KINDS, [], missing=said)] == ["Not complete", "Results"]
