# SPDX-License-Identifier: Apache-2.0
"""Perturbations that a training carries from one epoch to the next, example by example."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.pgd import PGD, repeat
from tfmot_atmc.attacks.problem import Leaves, Loss, Problem, fold_in
from tfmot_atmc.attacks.values import plain, radius
from tfmot_atmc.attacks.windows import Canvas
from tfmot_atmc.utils.files import written_whole

__all__ = ["ATTA", "Keyed"]

_VALIDATION_STEPS = 10


class Keyed(NamedTuple):
    """Images of a batch, with the key by which `ATTA` finds their perturbations.

    Attributes:
        image: floating `[batch, ...]`, what the model is to see: cropped and mirrored already.
        index: integers `[batch]`, which examples of the training set; no example twice.
        window: integers `[batch, 3]`: rows and columns of the padded image that the crop leaves
            out at the top and at the left, and 1 where the crop was mirrored afterwards.
    """

    image: Any
    index: Any
    window: Any


class ATTA(Attack):
    """Adversarial training with accumulated perturbations: each epoch goes on where the last ended.

    One cheap step an epoch thus becomes a long attack over many. Perturbations are stored for each
    example on the padded canvas; a crop reads its window, mirrored with it, and what the attack
    makes of it is written back into that window. They are kept in float16, and with `downsample`
    as averages of blocks. Zheng et al., "Efficient adversarial training with transferable
    adversarial examples", 2020; the step, the first perturbation (uniform in the ball) and the
    downsampling are those that were used for pruning at large scale.

    Called with `Keyed` inputs it reads and writes the store, in the graph. Called with plain
    inputs, as by `evaluate`, it starts at random and stores nothing. `tfmot_atmc.augmentation`
    has the keyed dataset for `fit`, `tfmot_atmc.callbacks.KeepPerturbations` saves the store of a
    run that may be interrupted. A copy of an attack starts with an empty store.

    Args:
        epsilon: radius in input units, a scalar or one value a channel.
        num_examples: number of examples of the training set. None, with `image_shape` None as
            well, for an attack that `run_stages` sizes for its data, or `sized` for yours.
        image_shape: shape of an image that the model sees, `(height, width, channels)`; or any
            shape where there is neither padding nor downsampling nor mirroring.
        steps: steps at each visit of an example.
        first_steps: steps at its first visit and after each reset, if more than `steps`. A model
            that resists already forgets it within an epoch of single steps from noise.
        step_size: step in input units; None is `epsilon / 2`.
        padding: pixels by which augmentation pads an image on each side before it crops.
        downsample: side of the blocks of which only the average is stored; 1 stores all.
        reset_every: visits of an example (that is, epochs) after which its perturbation is drawn
            anew; None for never.
        max_bytes: most bytes that the store may take.
        **kwargs: `bounds`, `seed` and `loss`, see `Attack`.

    Raises:
        ValueError: the store would take more than `max_bytes`, or an argument is out of range.

    Example:
    >>> attack = ATTA(epsilon=0.25, num_examples=1, image_shape=(1, 2, 1), step_size=0.05)
    >>> model = lambda x: tf.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], axis=1)
    >>> batch = Keyed(tf.fill([1, 1, 2, 1], 0.5), [0], [[0, 0, 0]])
    >>> results = [attack(model, batch, [0]).image[0, 0, 0, 0] for _ in range(12)]
    >>> float(results[0]) > 0.25, float(results[-1])  # too far for one step, not for twelve
    (True, 0.25)
    """

    converges = True
    any_loss = True
    _without = ("norm", "targeted")
    _looks_twice = False

    def __init__(
        self,
        *,
        epsilon: Any,
        num_examples: int | None = None,
        image_shape: Sequence[int] | None = None,
        steps: int = 1,
        first_steps: int | None = None,
        step_size: Any = None,
        padding: int = 0,
        downsample: int = 1,
        reset_every: int | None = None,
        max_bytes: int = 2**31,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if (num_examples is None) != (image_shape is None):
            raise ValueError(
                "Give both `num_examples` and `image_shape`, or neither. Received "
                f"{num_examples!r} and {image_shape!r}."
            )
        for name, value in (
            ("num_examples", num_examples),
            ("steps", steps),
            ("first_steps", first_steps),
            ("reset_every", reset_every),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received {value!r}.")
        self.num_examples = None if num_examples is None else int(num_examples)
        self.steps = int(steps)
        self.first_steps = None if first_steps is None else int(first_steps)
        self._step_size = None if step_size is None else radius(step_size, "step_size")
        self.reset_every = None if reset_every is None else int(reset_every)
        self.max_bytes = int(max_bytes)
        # Without data, an image of one pixel shows whether the other arguments are good.
        self._canvas = Canvas(
            (1, 1, 1) if image_shape is None else image_shape, padding, downsample
        )
        if self.num_examples is not None:
            self._canvas.check_size(self.num_examples, self.max_bytes)
        self._variables: tuple[tf.Variable, tf.Variable] | None = None

    def __call__(self, model: Callable[..., Any], x: Any, y: Any, *, seed: Any = None) -> Any:
        """Returns adversarial inputs, and with `Keyed` ones stores their perturbations.

        Args:
            model: as of `Attack`.
            x: `Keyed`, or plain inputs.
            y: as of `Attack`.
            seed: as of `Attack`; of the perturbation at an example's first visit.

        Returns:
            `Keyed` with the adversarial images and the same key, or inputs like `x`.

        Raises:
            ValueError: as of `Attack`, or a key is out of range.
        """
        if isinstance(x, Keyed):
            x = Keyed(*(tf.convert_to_tensor(part) for part in x))
        return super().__call__(model, x, y, seed=seed)

    @property
    def step_size(self) -> np.ndarray:
        """The step in input units, as an array that broadcasts along the channels."""
        return np.asarray(self.epsilon / 2) if self._step_size is None else self._step_size

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of an image that the model sees; None where it has no data yet."""
        return None if self.num_examples is None else self._canvas.image_shape

    @property
    def padding(self) -> int:
        """Pixels by which the canvas is larger than an image, on each side."""
        return self._canvas.padding

    @property
    def store(self) -> tf.Variable:
        """Stored perturbations, float16 `[num_examples, *cells]`; made when first asked for."""
        return self._state()[0]

    @property
    def visits(self) -> tf.Variable:
        """How often each example was attacked, int32 `[num_examples]`; 0: nothing stored yet."""
        return self._state()[1]

    def sized(
        self, num_examples: int, image_shape: Sequence[int], padding: int | None = None
    ) -> ATTA:
        """Returns the same attack for a training set, with an empty store.

        Args:
            num_examples: number of its examples.
            image_shape: shape of one, as the model sees it.
            padding: as of the class; None for this attack's own.

        Raises:
            ValueError: the store would take more than `max_bytes`, or an argument is out of range.
        """
        data = {"num_examples": num_examples, "image_shape": image_shape}
        own = self.padding if padding is None else padding
        return ATTA(**{**self.get_config(), **data, "padding": own})

    def for_validation(self) -> Attack:
        """Returns PGD on the same ball; without its store this attack is but a few steps."""
        config = {name: self.get_config()[name] for name in ("epsilon", "bounds", "seed", "loss")}
        return PGD(**config, steps=max(_VALIDATION_STEPS, self.steps))

    def _state(self) -> tuple[tf.Variable, tf.Variable]:
        if self.num_examples is None:
            raise ValueError(
                "This ATTA has no data yet. Give `num_examples` and `image_shape`, or call "
                "`attack.sized(len(x), x.shape[1:])`."
            )
        if self._variables is None:
            with tf.init_scope():
                cells = [self.num_examples, *self._canvas.cells]
                self._variables = (
                    tf.Variable(tf.zeros(cells, tf.float16), trainable=False, name="atta_store"),
                    tf.Variable(
                        tf.zeros([self.num_examples], tf.int32), trainable=False, name="atta_visits"
                    ),
                )
        return self._variables

    def reset(self) -> None:
        """Forgets all perturbations."""
        self.visits.assign(tf.zeros_like(self.visits))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the store to a file, whole or not at all.

        Args:
            path: a name ending in `.npz`.
        """
        with written_whole(path) as partial, open(partial, "wb") as file:
            np.savez(file, store=self.store.numpy(), visits=self.visits.numpy())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Reads a store that `save` wrote.

        Raises:
            ValueError: it is that of other data or of another canvas.
        """
        with np.load(path) as saved:
            for variable, name in ((self.store, "store"), (self.visits, "visits")):
                if name not in saved or saved[name].shape != tuple(variable.shape):
                    found = saved[name].shape if name in saved else "none"
                    raise ValueError(
                        f"{os.fspath(path)} has `{name}` of shape {found}, but this attack's is "
                        f"of shape {tuple(variable.shape)}. Use the same data, padding and "
                        "downsampling as when it was saved."
                    )
            self.store.assign(saved["store"])
            self.visits.assign(saved["visits"])

    def inputs(self, x: Any, *, training: bool = False) -> Any:
        """Returns the images of keyed inputs, and plain inputs as they are.

        Args:
            x: `Keyed`, or a nest of tensors.
            training: plain inputs are refused.

        Raises:
            ValueError: `training` with inputs that have no key.
        """
        if isinstance(x, Keyed):
            return x.image
        if training:
            raise ValueError(
                "Training with ATTA needs inputs with the key of their perturbations. Fit on "
                "tfmot_atmc.augmentation.KeyedBatches(x, y, attack=..., batch_size=...)."
            )
        return x

    def check_inputs(self, x: Any) -> None:
        """Raises ValueError where images leave the bounds, or keys the store.

        Args:
            x: `Keyed` or a nest of arrays or eager tensors.
        """
        super().check_inputs(x)
        if not isinstance(x, Keyed):
            return
        index, window = np.asarray(x.index), np.asarray(x.window)
        examples = int(self.visits.shape[0])
        if index.size and not (index.min() >= 0 and index.max() < examples):
            raise ValueError(
                f"`index` must lie in [0, {examples}). Received values from "
                f"{index.min()} to {index.max()}."
            )
        offsets = window[:, :2]
        if offsets.size and not (offsets.min() >= 0 and offsets.max() <= 2 * self.padding):
            raise ValueError(
                f"Crops must lie on the canvas: offsets in [0, {2 * self.padding}] with "
                f"padding={self.padding}. Received values from {offsets.min()} to {offsets.max()}."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        # Left out where it is not set: studies are known by the configuration of their attacks.
        first = {} if self.first_steps is None else {"first_steps": self.first_steps}
        return {
            **super().get_config(),
            **first,
            "num_examples": self.num_examples,
            "image_shape": self.image_shape,
            "steps": self.steps,
            "step_size": plain(self._step_size),
            "padding": self.padding,
            "downsample": self._canvas.factor,
            "reset_every": self.reset_every,
            "max_bytes": self.max_bytes,
        }

    def with_loss(self, loss: Loss) -> Attack:
        """Returns the same attack on another loss, with the same store.

        Args:
            loss: callable `(y, logits) -> [batch]` to be maximised.
        """
        other = ATTA(**{**self.get_config(), "loss": loss})
        if self.num_examples is not None:
            other._variables = self._state()
        return other

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        keyed = problem.pack(problem.x)
        if not isinstance(keyed, Keyed):
            return self._ascend(problem, problem.random_start(seed), self.steps)
        self._state()  # refuses where there is no data, before shapes are compared
        image = problem.x[0]
        if tuple(image.shape[1:]) != self.image_shape:
            raise ValueError(
                f"The images have shape {tuple(image.shape[1:])}, but `image_shape` is "
                f"{self.image_shape}."
            )
        fresh = self._fresh(keyed.index)
        old = self._recall(problem, keyed.index, fresh, seed)
        window = self._canvas.read(tf.cast(old, image.dtype), keyed.window)
        # Elsewhere on the canvas, or after rounding, it may have been outside: projected at once.
        leaves = self._prepared(problem, problem.project([image + window]), fresh)
        leaves = self._ascend(problem, leaves, self.steps)
        change = tf.cast(leaves[0] - image, tf.float32)
        self._remember(self._canvas.write(old, change, keyed.window), keyed.index)
        return leaves

    def _prepared(self, problem: Problem, leaves: Leaves, fresh: tf.Tensor) -> Leaves:
        """Takes the steps that first visits have more than others."""
        more = (self.first_steps or 0) - self.steps
        if more < 1:
            return leaves
        return tf.cond(
            tf.reduce_any(fresh),
            lambda: problem.select(fresh, self._ascend(problem, leaves, more), leaves),
            lambda: leaves,
        )

    def _ascend(self, problem: Problem, leaves: Leaves, steps: int) -> Leaves:
        def step(leaves: Leaves) -> tuple[Leaves]:
            _, _, gradients = problem.gradient(leaves)
            return (problem.step(leaves, gradients, self.step_size),)

        return repeat(step, (leaves,), steps)[0]

    def _fresh(self, index: tf.Tensor) -> tf.Tensor:
        """Returns which examples have no perturbation that could be carried on."""
        visits = tf.gather(self.visits, index)
        return visits == 0 if self.reset_every is None else visits % self.reset_every == 0

    def _recall(
        self, problem: Problem, index: tf.Tensor, fresh: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """Returns canvases, float32: stored ones, or noise where there are none yet."""
        stored = self._canvas.upsample(tf.cast(tf.gather(self.store, index), tf.float32))
        noise = problem._uniform(stored, fold_in(seed, 0))
        noise *= problem.constant(self.epsilon, stored)
        return tf.where(problem.column(fresh, stored), noise, stored)

    def _remember(self, canvas: tf.Tensor, index: tf.Tensor) -> None:
        cells = tf.cast(self._canvas.pool(canvas), tf.float16)
        self.store.scatter_update(tf.IndexedSlices(cells, index))
        self.visits.scatter_add(tf.IndexedSlices(tf.ones_like(index, tf.int32), index))
