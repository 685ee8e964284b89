# SPDX-License-Identifier: Apache-2.0
"""Reading values: from flags (text), from config.py (Python and NumPy types) and from JSON."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recognition.config import types
from recognition.errors import UserError


@pytest.mark.parametrize("kind, value, read", [
    (types.integer(), "12", 12),
    (types.integer(), 2e3, 2000),
    (types.integer(), np.int64(7), 7),
    (types.integer(), False, 0),
    (types.integer(least=-1), "-1", -1),
    (types.real(), "1e-3", 0.001),
    (types.real(), 3, 3.0),
    (types.real(), np.float64(0.5), 0.5),
    (types.side, "40", 40),
    (types.side, False, 0),
    (types.boolean, 0, False),
    (types.boolean, np.bool_(True), True),
    (types.choice(1, 2), 2.0, 2),
    (types.text, Path("a/b"), "a/b"),
    (types.names, "lfw, cfp_fp", ("lfw", "cfp_fp")),
    (types.names, ["lfw"], ("lfw",)),
    (types.names, "", ()),
    (types.spans, "1000,2000", (1000, 2000)),
    (types.spans, [1000, 2e3], (1000, 2000)),
    (types.spans, "", ()),
    (types.spans, "10e, 18.5 epochs,22e", ("10e", "18.5e", "22e")),
    (types.spans, ["1e", "2e"], ("1e", "2e")),
    (types.span, "500", 500),
    (types.span, 500.0, 500),
    (types.span, "2e", "2e"),
    (types.span, "1 epoch", "1e"),
    (types.span, "0.125e", "0.125e"),
    (types.span, "999999e", "999999e"),
    (types.span, "0e", 0),
    (types.four_counts, [2, 8, 16, 4], (2, 8, 16, 4)),
    (types.square_rgb, (112, 112, 3), (112, 112, 3)),
])
def test_valid(kind, value, read):
    result = kind.check(value, "key")
    assert result == read and type(result) is type(read)


@pytest.mark.parametrize("kind, value", [
    (types.integer(), "1.5"), (types.integer(), 1.5), (types.integer(), None), (types.integer(), float("inf")),
    (types.integer(), float("nan")), (types.integer(), b"3"), (types.integer(least=1), 0), (types.integer(most=3), "4"),
    (types.real(), "nan"), (types.real(), float("inf")), (types.real(), True), (types.real(), "fast"),
    (types.real(above=0), 0), (types.real(least=0, below=1), 1),
    (types.side, True), (types.side, np.bool_(True)), (types.side, -1), (types.side, 1.5),
    (types.boolean, "yes"), (types.boolean, None), (types.boolean, 2),
    (types.choice("a", "b"), "c"), (types.choice("a"), ["a"]), (types.choice(1), np.arange(3)),
    (types.text, 3), (types.text, b"x"), (types.text, "a\0b"), (types.filled_text, " "),
    (types.folder_part, "../up"), (types.folder_part, "a\nb"),
    (types.names, "lfw,,x"), (types.names, [3]), (types.names, 3),
    (types.spans, "2,1"), (types.spans, "1,1"), (types.spans, "0,1"), (types.spans, "1,2,"),
    (types.spans, "1;2"), (types.spans, 1000),
    (types.spans, "1e,1.0e"), (types.spans, "2e,1e"), (types.spans, "1,2e"), (types.spans, "0e,1e"),
    (types.span, "-1"), (types.span, "1e3"), (types.span, "e"), (types.span, "2 weeks"), (types.span, "0.0001e"),
    (types.span, 1.5), (types.span, None), (types.span, "-1e"), (types.span, b"2e"),
    (types.four_counts, [1, 2, 3]), (types.four_counts, [1, 2, 3, 0]),
    (types.square_rgb, (112, 96, 3)), (types.square_rgb, (112, 112, 1)), (types.square_rgb, (112, 112)),
    (types.devices, "gpu:x"), (types.devices, 2),
])
def test_not_valid(kind, value):
    with pytest.raises(UserError, match=r"^key: found .*, expected ") as error:
        kind.check(value, "key")
    assert "\n" not in str(error.value)


def test_a_message_names_place_value_valid_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        types.choice("local", "device").check("devise", "--kvstore")
    assert str(error.value) == ("--kvstore: found 'devise', expected one of 'local', 'device'; the nearest is 'device'")
    with pytest.raises(UserError, match=r"^--mom: found '1', expected a number at least 0 and below 1$"):
        types.real(least=0, below=1).check("1", "--mom")


KINDS = [types.integer(least=0), types.real(above=0), types.boolean, types.choice("a", 1), types.text,
         types.filled_text, types.folder_part, types.names, types.spans, types.four_counts,
         types.square_rgb, types.devices, types.side]
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
        assert types.factors.check(value, "x") == expected
    assert types.factors.check("", "x") == ()
    for value in ("stage1*", "stage1*=fast", "=1", "a=-1", "a=nan", 3, [1, 2]):
        with pytest.raises(UserError, match=r"x: found .* expected patterns of names with numbers"):
            types.factors.check(value, "x")


def test_short_words_have_a_nearest_one_too() -> None:
    names = ["r100", "r50", "d169", "y1", "y2", "m1", "mnas"]
    assert types.nearest("y3", names) in ("; the nearest is 'y1'", "; the nearest is 'y2'")
    assert types.nearest("r5", names) == "; the nearest is 'r50'"
    assert [types.nearest(word, names) for word in ("zz", "q", "xyz", "nonsense")] == [""] * 4
