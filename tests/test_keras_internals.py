# SPDX-License-Identifier: Apache-2.0
"""What the library takes from Keras without a public name is there, and does what it should."""

import ast
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc
from tfmot_atmc.utils import keras_internals as internals

ROOM = pathlib.Path(tfmot_atmc.__file__).parent
HOOKS = {
    "_all_reduce_sum_gradients",
    "_build_shapes_dict",
    "_compile_loss",
    "_compile_metrics",
    "_distributed_dataset",
    "_flatten_layers",
    "_fn_kwargs",
    "_inbound_nodes",
    "_inputs_struct",
    "_kernel",
    "_loss_tracker",
    "_maybe_symbolic_build",
    "_nodes_by_depth",
    "_non_trainable_variables",
    "_output_shape",
    "_outputs_struct",
    "_seed_generators",
    "_tracker",
    "_trainable_variables",
    "_user_loss_weights",
}


def test_private_names_of_keras_stand_in_one_file():
    found = {}
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "name", None))
            if isinstance(node, ast.Constant) and node.value in HOOKS:
                name = node.value
            if isinstance(node, ast.Attribute) or name in HOOKS:
                own = isinstance(getattr(node, "value", None), ast.Name) and node.value.id == "self"
                if name in HOOKS and not own:
                    found.setdefault(path.name, set()).add(name)
    assert set(found) == {"keras_internals.py"}
    assert found["keras_internals.py"] == HOOKS


@pytest.fixture
def model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="first")(inputs)
    x = keras.layers.Dropout(0.5, name="drop", seed=1)(x)
    x = keras.layers.BatchNormalization(name="normal")(x)
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="inside")], name="in")
    return keras.Model(inputs, inner(x))


def test_layers_are_each_found_once_with_their_own_variables(model):
    layers = internals.flat_layers(model)
    assert layers[0] is model and internals.inner_layers(model) == layers[1:]
    names = [layer.name for layer in layers]
    assert len(names) == len(set(names)) and {"first", "drop", "normal", "in", "inside"} <= set(
        names
    )
    by_name = dict(zip(names, layers, strict=True))
    assert [v.name for v in internals.own_variables(by_name["first"])] == ["kernel", "bias"]
    assert internals.own_variables(by_name["in"]) == []
    normal = by_name["normal"]
    assert [v.name for v in internals.own_state(normal)] == ["moving_mean", "moving_variance"]
    assert internals.own_trainable_variables(normal) == [normal.gamma, normal.beta]
    assert [tuple(state.shape) for state in internals.random_states(by_name["drop"])] == [(2,)]
    assert internals.plain_kernel(by_name["first"]) is by_name["first"].kernel


def test_the_graph_of_a_functional_model_is_known(model):
    assert internals.has_graph(model) and not internals.has_graph(keras.layers.Dense(1))
    by_depth = internals.nodes_by_depth(model)
    ordered = [n.operation.name for depth in sorted(by_depth)[::-1] for n in by_depth[depth]]
    assert ordered.index("first") < ordered.index("drop") < ordered.index("normal")
    first = model.get_layer("first")
    (call,) = internals.calls_of(first)
    assert call.input_tensors[0].shape == (None, 4) and call.outputs[0].shape == (None, 3)
    first(keras.Input((4,)))
    assert len(internals.calls_of(first)) == 2


def test_a_built_layer_takes_variables_only_while_it_is_unlocked(model):
    layer = model.get_layer("first")
    with internals.unlocked(layer):
        layer.more = layer.add_weight(name="more", shape=(2,))
    assert [v.name for v in layer.weights] == ["kernel", "bias", "more"]
    with pytest.raises(ValueError, match="built"):
        layer.add_weight(name="late", shape=(2,))


def test_a_lambda_tells_the_shape_it_was_made_with():
    made = keras.layers.Lambda(lambda x: x[:, :1], output_shape=(1,))
    assert tuple(internals.lambda_output_shape(made)) == (1,)


def test_the_loss_of_a_compiled_model_can_be_set(model):
    model.compile("sgd", "mse")
    tracker = internals.loss_tracker(model)
    tracker.update_state(3.0)
    assert tracker.name == "loss" and float(tracker.result()) == 3.0
    assert tracker in model.metrics


def test_weights_metrics_and_axes_of_losses_are_told(model):
    losses = keras.losses
    model.compile("sgd", "mse")
    assert internals.loss_weights(model) is None and internals.loss_metrics(model) == []
    two = keras.Model(model.inputs, [model.outputs[0], model.get_layer("first").output])
    two.compile("sgd", ["mse", "mae"], loss_weights=[1.0, 0.5])
    x, y = np.zeros((2, 4), "float32"), [np.zeros((2, 2)), np.zeros((2, 3))]
    two.evaluate(x, y, verbose=0)
    assert internals.loss_weights(two) == [1.0, 0.5] and len(internals.loss_metrics(two)) == 2
    assert internals.loss_axis(losses.SparseCategoricalCrossentropy(axis=1)) == 1
    assert internals.loss_axis(losses.CategoricalCrossentropy()) == -1
    assert internals.loss_axis(losses.BinaryCrossentropy(axis=2)) == 2


def test_building_from_a_batch_has_the_hook_that_is_overridden():
    assert callable(keras.Model._maybe_symbolic_build)
    seen = []

    class Strategy:
        num_replicas_in_sync = 2

    class Base:
        distribute_strategy = Strategy()

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            seen.append((iterator, data_batch))

    class Own(internals.BuiltFromOwnBatch, Base):
        def _own_batch(self, iterator):
            return f"first of {iterator}"

    Own()._maybe_symbolic_build(iterator="batches")
    Base.distribute_strategy.num_replicas_in_sync = 1
    Own()._maybe_symbolic_build(iterator="batches")
    assert seen == [(None, "first of batches"), ("batches", None)]


def test_optimizers_sum_gradients_where_the_library_stops_them():
    for optimizer in (keras.optimizers.SGD(), keras.optimizers.Adam()):
        hook = "_all_reduce_sum_gradients"
        with internals.already_averaged(optimizer):
            assert getattr(optimizer, hook)(["pair"]) == ["pair"]
        assert hook not in vars(optimizer) and callable(getattr(optimizer, hook))
    with (
        pytest.raises(RuntimeError, match="does not sum gradients"),
        internals.already_averaged(object()),
    ):
        pass


def test_shapes_of_a_built_layer_are_told():
    layer = keras.layers.Dense(2)
    assert internals.build_shapes(layer) == {}
    layer(np.zeros((3, 4), np.float32))
    assert tuple(next(iter(internals.build_shapes(layer).values()))) == (3, 4)
    assert tf.reduce_sum(layer.kernel.value).shape == ()


@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
def test_the_first_train_step_is_traced_once(way, monkeypatch):
    """Variables that are made in the trace would have all of it traced again."""
    layers = [keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = tfmot_atmc.compress(keras.Sequential([keras.Input((4,)), *layers]), "atmc", ratio=0.5)
    traced, step = [], type(model).train_step

    def counted(self, data):
        traced.append(len(self.optimizer.variables))
        return step(self, data)

    monkeypatch.setattr(type(model), "train_step", counted)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    x, y = np.ones((8, 4), "float32"), np.arange(8) % 2
    if way == "fit":
        model.fit(x, y, verbose=0)
    else:
        model.train_on_batch(x, y)
    assert len(traced) == 1 and traced[0] > 2
