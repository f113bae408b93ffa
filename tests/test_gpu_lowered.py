# SPDX-License-Identifier: Apache-2.0
"""Promises of the programs that XLA gets: a whole train step, on the device from end to end."""

from __future__ import annotations

import lzma

import gpu_lowering
import gpu_programs
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc.math import l0_masks, zero_kmeans, zero_kmeans_of_all
from tfmot_atmc.utils.tracing import within_xla

SMALL = {program.name: program for program in gpu_programs.correctness(4, 4, "mlp")}


def _module(program):
    function, inputs = program.make()
    return gpu_lowering.lower(function, inputs).module


def test_every_method_attack_and_objective_has_a_step_among_the_programs():
    methods = {atmc.methods.name_of(method) for method in gpu_programs.methods().values()}
    assert methods == set(atmc.methods.names())
    attacks = {type(attack).__name__ for attack in gpu_programs.attacks().values()}
    known = {name for name in atmc.attacks.__all__ if _is_attack(name)}
    # AutoAttack is its parts and refuses graphs; ATTA's step has inputs of its own.
    assert attacks | {"ATTA"} == known - {"Attack", "AutoAttack"}
    assert "attack ATTA" in SMALL
    assert all(f"objective {name}" in SMALL for name in gpu_programs.OBJECTIVES)


def _is_attack(name):
    thing = getattr(atmc.attacks, name)
    return isinstance(thing, type) and issubclass(thing, atmc.attacks.Attack)


@pytest.mark.parametrize("name", SMALL)
def test_a_train_step_leaves_the_device_nowhere_and_has_static_shapes(name):
    module = _module(SMALL[name])
    assert gpu_lowering.faults(module) == []
    assert gpu_lowering.opcodes(module)["dot"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SMALL)))
def test_a_step_of_a_convolutional_network_leaves_the_device_nowhere_either(number):
    assert gpu_lowering.faults(_module(gpu_programs.correctness(8, 4)[number])) == []


@pytest.mark.parametrize("how", gpu_programs.PRECISIONS)
def test_programs_are_lowered_in_the_precision_that_they_name(how, tmp_path):
    program = gpu_programs.steps("mlp", 4, how, ("plain",), count=1)[0]
    gpu_lowering.lower_programs(tmp_path, "ratios", [(0, program)], exact=False)
    (path,) = tmp_path.glob("*.hlo.xz")
    products = [
        (instruction.shape.element_type, set(instruction.precision_config.operand_precision))
        for computation in gpu_lowering.parsed(lzma.decompress(path.read_bytes())).computations
        for instruction in computation.instructions
        if instruction.opcode == "dot"
    ]
    float32, bfloat16, default, highest = 11, 16, 0, 2
    assert products
    assert {kind for kind, _ in products} == {bfloat16 if how == "bfloat16" else float32}
    asked = highest if how == "float32" else default
    assert all(wanted <= {asked} for _, wanted in products)
    assert keras.config.dtype_policy().name == "float32"


def test_faults_are_found_where_there_are_any():
    x = np.array([1.0, -1.0, 2.0], np.float32)
    dynamic = gpu_lowering.lower(lambda t: tf.boolean_mask(t, t > 0), [x])
    assert any("dynamic shape" in fault for fault in gpu_lowering.faults(dynamic.module))
    with pytest.raises((tf.errors.OpError, ValueError)):  # XLA itself refuses calls of Python
        gpu_lowering.lower(lambda t: tf.numpy_function(np.sort, [t], tf.float32), [x])


def test_a_lowered_program_tells_which_output_is_which_variable():
    counter, other = tf.Variable(2.0), tf.Variable([1.0, 1.0])

    def step(x):
        counter.assign_add(1.0)
        return {"b": x * counter, "a": tf.reduce_sum(other)}

    lowered = gpu_lowering.lower(step, [np.float32(3.0)])
    updated = [lowered.variables[parameter] for _, parameter in lowered.updates]
    assert [variable is counter for variable in updated] == [True]
    assert lowered.outputs == ["a", "b"] and len(lowered.parameters) == 3
    wanted = gpu_lowering.expected(step, lowered, [np.float32(3.0)])
    (parameter,) = (parameter for _, parameter in lowered.updates)
    assert wanted == {"a": 2.0, "b": 9.0, f"p{parameter}": 3.0}


def test_projection_for_xla_neither_sorts_nor_holds_constants_of_the_weights_size():
    def module(size):
        def masks(x):
            return l0_masks([x, -x[:7]], size // 2, algorithm="bisection")

        return gpu_lowering.lower(masks, [np.ones(size, np.float32)]).module

    small, large = module(1_000), module(100_000)
    for computation in gpu_lowering.parsed(large).computations:
        for instruction in computation.instructions:
            assert instruction.opcode not in ("sort", "topk", "scatter")
            if instruction.opcode == "reduce-window":  # a prefix sum: of eight counts, no more
                assert np.prod(instruction.shape.dimensions) <= 8
    assert len(large) < len(small) + 40_000  # of 400,000 bytes of weights


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("grid", [None, 7])
def test_clustering_all_tensors_in_one_program_is_clustering_each(alone, grid):
    random = np.random.default_rng(0)
    tensors = [tf.constant(random.normal(size=s), tf.float32) for s in (60, (5, 8), 3)]
    tensors[1] = tf.where(tf.abs(tensors[1]) > 0.5, tensors[1], 0.0)
    book = tf.constant([-1.0, -0.5, 0.5, 1.0])
    options = {"zeros_stay_alone": alone, "grid": grid}

    @tf.function(autograph=False)
    def both(*given):
        fresh = zero_kmeans_of_all(given, 4, **options)
        warm = zero_kmeans_of_all(given, 4, initial_codebooks=[book] * 3, **options)
        return fresh, warm

    for results, start in zip(both(*tensors), (None, book), strict=True):
        for tensor, found in zip(tensors, results, strict=True):
            where = tensor != 0 if alone else None
            one = zero_kmeans(
                tensor, 4, where=where, initial_codebook=start, grid=grid, static=True
            )
            assert np.array_equal(found.values, one.values)
            assert np.array_equal(found.codebook, one.codebook)


def test_a_program_that_clusters_grows_by_little_with_each_tensor():
    def instructions(number):
        def values(*tensors):
            return [r.values for r in zero_kmeans_of_all(tensors, 4, zeros_stay_alone=True)]

        inputs = [np.ones(9, np.float32)] * number
        return sum(gpu_lowering.opcodes(gpu_lowering.lower(values, inputs).module).values())

    one, three = instructions(1), instructions(3)
    assert three < 2 * one


def test_what_is_traced_for_xla_knows_it():
    seen = {}

    def look(name):
        def body(x):
            return tf.while_loop(lambda i: i < 1, lambda i: _look(i), (x,))[0]

        def _look(i):
            seen[name] = within_xla()
            return (i + 1,)

        return body

    tf.function(look("plain"))(tf.constant(0))
    tf.function(look("compiled"), jit_compile=True)(tf.constant(0))
    inner = tf.function(look("inner"), jit_compile=True)
    tf.function(lambda x: inner(x))(tf.constant(0))
    assert seen == {"plain": False, "compiled": True, "inner": True}
    assert within_xla() is False


@pytest.mark.parametrize(
    "attack",
    [
        atmc.attacks.APGD(epsilon=0.06, steps=6, restarts=2),
        atmc.attacks.APGDT(epsilon=0.06, steps=6, num_targets=3),
        atmc.attacks.FABT(epsilon=0.06, steps=6, num_targets=3),
        atmc.attacks.Square(epsilon=0.06, queries=20, restarts=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_of_several_runs_compile_with_xla_and_break_as_much(attack):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(5))
    x = tf.constant(np.random.default_rng(2).random((24, 4, 4, 1), np.float32))
    y = tf.argmax(model(x), axis=1)
    wrong = {}
    for jit in (False, True):
        found = tf.function(lambda a, b: attack(model, a, b), jit_compile=jit)(x, y)
        assert float(tf.reduce_max(tf.abs(found - x))) <= 0.06 + 1e-6
        assert 0.0 <= float(tf.reduce_min(found)) and float(tf.reduce_max(found)) <= 1.0
        wrong[jit] = int(tf.math.count_nonzero(tf.argmax(model(found), axis=1) != y))
    # Examples that are done are dropped without XLA only, so that the random draws differ.
    assert 0 < wrong[True] < 24 and abs(wrong[True] - wrong[False]) <= 2
