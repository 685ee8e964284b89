# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families import fmobilefacenet, fresnet
from recognition.networks.shapes import infer_shapes


def test_names_and_shapes_are_in_the_symbols_order():
    symbol = fmobilefacenet.get_symbol()
    shapes = infer_shapes(symbol, (3, 112, 112), batch=5)
    assert ["data", *shapes.arguments] == symbol.list_arguments()
    assert list(shapes.auxiliary) == symbol.list_auxiliary_states()
    assert shapes.arguments["conv_6dw7_7_conv2d_weight"] == (512, 1, 7, 7)
    assert shapes.arguments["conv_1_relu_gamma"] == (64,)
    assert shapes.arguments["pre_fc1_weight"] == (128, 512)
    assert shapes.auxiliary["fc1_moving_var"] == (128,)
    assert shapes.output == (5, 128)


def test_fully_connected_weights_follow_the_image_size():
    arguments = infer_shapes(fresnet.get_symbol(num_layers=18), (3, 64, 48)).arguments
    assert arguments["pre_fc1_weight"] == (512, 512 * 4 * 3)


def test_images_that_do_not_fit_are_named_with_the_layer(capfd):
    with pytest.raises(UserError, match=r"found 96x80x3, .*conv_6dw7_7_conv2d says: kernel size exceed"):
        infer_shapes(fmobilefacenet.get_symbol(), (3, 96, 80))
    assert capfd.readouterr() == ("", "")


def test_a_slice_of_nothing_is_named_before_mxnet_divides_by_zero():
    """MXNet 1.9.1 ends the process: found by fuzzing."""
    part = sym.slice(sym.Variable("data"), begin=(None, None, 8, None), end=(None, None, 16, None), name="part")
    symbol = sym.Reshape(part, shape=(0, 0, 0, -1), name="flat").graph()
    assert infer_shapes(symbol, (3, 16, 16)).output == (1, 3, 8, 16)
    with pytest.raises(UserError, match=r"^part has an output of \(1, 3, 0, 8\) for images \(1, 3, 8, 8\), expected"):
        infer_shapes(symbol, (3, 8, 8))


def test_layers_that_take_more_memory_together_than_any_network_has():
    x = sym.tile(sym.Variable("data"), reps=(1, 1, 40, 40))
    for _ in range(30):
        x = x + x
    assert infer_shapes(x.graph(), (3, 32, 32)).output == (1, 3, 1280, 1280)
    with pytest.raises(UserError, match=r"all layers together have 4,875,976,704 numbers for images \(2, 3, 128"):
        infer_shapes(x.graph(), (3, 128, 128), batch=2)
