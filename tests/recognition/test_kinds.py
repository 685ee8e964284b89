# SPDX-License-Identifier: Apache-2.0
"""Reading values: from flags (text), from config.py (Python and NumPy types) and from JSON."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recognition import kinds
from recognition.errors import UserError


@pytest.mark.parametrize("kind, value, read", [
    (kinds.integer(), "12", 12),
    (kinds.integer(), 2e3, 2000),
    (kinds.integer(), np.int64(7), 7),
    (kinds.integer(), False, 0),
    (kinds.integer(least=-1), "-1", -1),
    (kinds.real(), "1e-3", 0.001),
    (kinds.real(), 3, 3.0),
    (kinds.real(), np.float64(0.5), 0.5),
    (kinds.side, "40", 40),
    (kinds.side, False, 0),
    (kinds.boolean, 0, False),
    (kinds.boolean, np.bool_(True), True),
    (kinds.choice(1, 2), 2.0, 2),
    (kinds.text, Path("a/b"), "a/b"),
    (kinds.names, "lfw, cfp_fp", ("lfw", "cfp_fp")),
    (kinds.names, ["lfw"], ("lfw",)),
    (kinds.names, "", ()),
    (kinds.spans, "1000,2000", (1000, 2000)),
    (kinds.spans, [1000, 2e3], (1000, 2000)),
    (kinds.spans, "", ()),
    (kinds.spans, "10e, 18.5 epochs,22e", ("10e", "18.5e", "22e")),
    (kinds.spans, ["1e", "2e"], ("1e", "2e")),
    (kinds.span, "500", 500),
    (kinds.span, 500.0, 500),
    (kinds.span, "2e", "2e"),
    (kinds.span, "1 epoch", "1e"),
    (kinds.span, "0.125e", "0.125e"),
    (kinds.span, "999999e", "999999e"),
    (kinds.span, "0e", 0),
    (kinds.four_counts, [2, 8, 16, 4], (2, 8, 16, 4)),
    (kinds.square_rgb, (112, 112, 3), (112, 112, 3)),
])
def test_valid(kind, value, read):
    result = kind.check(value, "key")
    assert result == read and type(result) is type(read)


@pytest.mark.parametrize("kind, value", [
    (kinds.integer(), "1.5"), (kinds.integer(), 1.5), (kinds.integer(), None), (kinds.integer(), float("inf")),
    (kinds.integer(), float("nan")), (kinds.integer(), b"3"), (kinds.integer(least=1), 0), (kinds.integer(most=3), "4"),
    (kinds.real(), "nan"), (kinds.real(), float("inf")), (kinds.real(), True), (kinds.real(), "fast"),
    (kinds.real(above=0), 0), (kinds.real(least=0, below=1), 1),
    (kinds.side, True), (kinds.side, np.bool_(True)), (kinds.side, -1), (kinds.side, 1.5),
    (kinds.boolean, "yes"), (kinds.boolean, None), (kinds.boolean, 2),
    (kinds.choice("a", "b"), "c"), (kinds.choice("a"), ["a"]), (kinds.choice(1), np.arange(3)),
    (kinds.text, 3), (kinds.text, b"x"), (kinds.text, "a\0b"), (kinds.filled_text, " "),
    (kinds.folder_part, "../up"), (kinds.folder_part, "a\nb"),
    (kinds.names, "lfw,,x"), (kinds.names, [3]), (kinds.names, 3),
    (kinds.spans, "2,1"), (kinds.spans, "1,1"), (kinds.spans, "0,1"), (kinds.spans, "1,2,"),
    (kinds.spans, "1;2"), (kinds.spans, 1000),
    (kinds.spans, "1e,1.0e"), (kinds.spans, "2e,1e"), (kinds.spans, "1,2e"), (kinds.spans, "0e,1e"),
    (kinds.span, "-1"), (kinds.span, "1e3"), (kinds.span, "e"), (kinds.span, "2 weeks"), (kinds.span, "0.0001e"),
    (kinds.span, 1.5), (kinds.span, None), (kinds.span, "-1e"), (kinds.span, b"2e"),
    (kinds.four_counts, [1, 2, 3]), (kinds.four_counts, [1, 2, 3, 0]),
    (kinds.square_rgb, (112, 96, 3)), (kinds.square_rgb, (112, 112, 1)), (kinds.square_rgb, (112, 112)),
    (kinds.devices, "gpu:x"), (kinds.devices, 2),
])
def test_not_valid(kind, value):
    with pytest.raises(UserError, match=r"^key: found .*, expected ") as error:
        kind.check(value, "key")
    assert "\n" not in str(error.value)


def test_a_message_names_place_value_valid_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        kinds.choice("local", "device").check("devise", "--kvstore")
    assert str(error.value) == ("--kvstore: found 'devise', expected one of 'local', 'device'; the nearest is 'device'")
    with pytest.raises(UserError, match=r"^--mom: found '1', expected a number at least 0 and below 1$"):
        kinds.real(least=0, below=1).check("1", "--mom")


KINDS = [kinds.integer(least=0), kinds.real(above=0), kinds.boolean, kinds.choice("a", 1), kinds.text,
         kinds.filled_text, kinds.folder_part, kinds.names, kinds.spans, kinds.four_counts,
         kinds.square_rgb, kinds.devices, kinds.side]
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                      lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner))


@given(st.sampled_from(KINDS), VALUES)
def test_any_value_is_read_or_refused_in_one_line_and_reading_twice_changes_nothing(kind, value):
    try:
        read = kind.check(value, "key")
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert kind.check(read, "key") == read


def test_factors_from_a_flag_a_config_and_a_saved_configuration() -> None:
    expected = (("stage1*", 0.1), ("pre_fc1*", 10.0))
    for value in ("stage1*=0.1, pre_fc1*=10", {"stage1*": 0.1, "pre_fc1*": 10}, [["stage1*", 0.1], ["pre_fc1*", 10]]):
        assert kinds.factors.check(value, "x") == expected
    assert kinds.factors.check("", "x") == ()
    for value in ("stage1*", "stage1*=fast", "=1", "a=-1", "a=nan", 3, [1, 2]):
        with pytest.raises(UserError, match=r"x: found .* expected patterns of names with numbers"):
            kinds.factors.check(value, "x")


def test_short_words_have_a_nearest_one_too() -> None:
    names = ["r100", "r50", "d169", "y1", "y2", "m1", "mnas"]
    assert kinds.nearest("y3", names) in ("; the nearest is 'y1'", "; the nearest is 'y2'")
    assert kinds.nearest("r5", names) == "; the nearest is 'r50'"
    assert [kinds.nearest(word, names) for word in ("zz", "q", "xyz", "nonsense")] == [""] * 4
