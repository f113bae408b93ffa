# SPDX-License-Identifier: Apache-2.0
"""The method interface."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.attacks import Attack
from tfmot_atmc.constraints import Codebook, Constraint
from tfmot_atmc.kernels import Kernel, PlainKernel, Site
from tfmot_atmc.methods.costs import get_cost
from tfmot_atmc.methods.stages import Stage, phased
from tfmot_atmc.utils.configurable import Configurable, get_configured

__all__ = [
    "CodebookMethod",
    "Method",
    "arguments_in_channels",
    "arguments_in_macs",
    "class_of",
    "get",
    "name_of",
    "names",
]


class Method(Configurable, kind="method"):
    """How a model is compressed: kernels, constraints, objective, attack policy and stages.

    A new method is a subclass with a constructor, whose arguments it keeps in attributes of the
    same names, and those of the parts below that differ from plain training. By being defined it is
    known to `compress`, the command line, studies and saved models under its name in lower case.
    """

    adversarial: bool = True
    """Whether the method trains under attack; one that does not refuses an attack for training."""

    codebooks: bool = False
    """Whether codebooks belong to the method; others that take `bits` have them on request."""

    objective: Any = None
    """What is minimised where the caller names no objective: an `Objective` or its name; None for
    the adversarial loss."""

    ratio_of: Any = "weights"
    """What its `ratio` is a ratio of, where it has one: a `Cost` or the name of one."""

    narrows: bool = False
    """Whether its network is a narrower one of the same family, as wide as the budget allows."""

    starts_dense: bool = True
    """Whether it starts from a dense model that has been trained, under attack if it is adversarial
    itself; recipes then train one first."""

    stage_name: str | None = None
    """Name of its first stage; None for its own name."""

    file_values: str = "int8"
    """How a file within a size stores the weights, as `export_tflite` takes it."""

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns the stages of training, without the dense start; none if that is all.

        By default one of pruning, and where there are codebooks a short one that begins with them,
        at the rates that were best on MNIST. A schedule other than the default one is kept in the
        first; `codebook_begin` is for training without stages.

        Args:
            epochs: epochs of the first stage.
            preset: `"default"`, or `"paper"` for stages as in the ATMC paper.
            phases: `"own"` for what the method takes on its own; `"all"` for hardening and
                polishing between the two, or `"pruning"` for none of them, as studies ask for, so
                that all methods that they compare train for as many steps.
            finish: add a last stage as long as that of codebooks where there are none.

        Returns:
            A list of `Stage`.

        Raises:
            ValueError: for an unknown preset or unknown phases.
        """
        name = name_of(self)
        return phased(self, (self.stage_name or name, name), epochs, preset, phases, finish)

    def kernel_for(self, site: Site) -> Kernel:
        """Returns the kernel for a site.

        Args:
            site: the layer's place, shape and channels; `site.factorizable` says whether its kernel
                may be a product.
        """
        return PlainKernel()

    def trains(self, name: str) -> bool:
        """Returns whether training moves a variable that is no factor of a kernel.

        Args:
            name: the variable's name in its layer, such as `"bias"` or `"gamma"`.
        """
        return True

    def cost_of(self, site: Site, part: str) -> float:
        """Returns what one entry of a factor takes of the budget, above 0; 1 to count nonzeros.

        Args:
            site: where the factor's kernel sits.
            part: name of the factor in its kernel.
        """
        return 1.0

    def constraints(self) -> list[Constraint]:
        """Returns new constraints, in the order in which they project."""
        return []

    def attack_policy(self, attack: Attack | None) -> Attack | None:
        """Returns the attack to train under, given the one asked for.

        Raises:
            ValueError: if the method does not train under it.
        """
        self.check_attack(attack)
        return attack

    def check_attack(self, attack: Attack | None) -> None:
        """Raises ValueError if there is an attack and the method trains on clean inputs."""
        if attack is not None and not self.adversarial:
            raise ValueError(
                f"{type(self).__name__} trains on clean inputs. Drop `attack`; a "
                "`validation_attack` still measures robustness."
            )


class CodebookMethod(Method, abstract=True):
    """A method with a budget, and with codebooks on request.

    Subclasses override `budget`. A subclass with arguments of its own sets them before it calls
    this constructor, which makes the constraints once, to refuse values out of range at once.

    Args:
        ratio: what is left as a ratio of the dense kernels' parameters, in (0, 1].
        k: number of nonzeros; give `ratio` or `k`.
        bits: None or 32, or b for a codebook of 2^b values a factor.
        codebook_begin: step (int) or fraction of the planned steps (float) at which the codebook
            starts to act.
        layer_exponent: None for one budget over all layers; p in [0, 1] for a budget of its own in
            each layer, in proportion to the p-th power of its size.
        floors: share in [0, 1] of the one budget that is assured to layers, so that small ones are
            not emptied (`FlooredSparsity`); 0 for the paper's global budget, None for the default.
        ratio_of: what the budget counts: `"weights"`, `"macs"`, `"energy"` or a `Cost`. `ratio` is
            then of what the dense kernels cost, and `k` what all that is left may cost.

    Raises:
        ValueError: if a value is out of range, or a budget of each layer is asked for in another
            currency than weights.
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        bits: int | None = None,
        codebook_begin: int | float = 0.75,
        layer_exponent: float | None = None,
        floors: float | None = None,
        ratio_of: Any = "weights",
    ):
        self.ratio, self.k, self.bits = ratio, k, bits
        self.codebook_begin = codebook_begin
        self.layer_exponent, self.floors = layer_exponent, floors
        self.ratio_of, self._cost = ratio_of, get_cost(ratio_of)
        if layer_exponent is not None and self.ratio_of != "weights":
            raise ValueError(
                "A budget for each layer counts weights. Leave out `layer_exponent`, or give "
                f"ratio_of='weights'. Received {layer_exponent!r} and {ratio_of!r}."
            )
        self.constraints()

    def _arguments(self) -> dict[str, Any]:
        """Returns the arguments by which studies know methods: no later ones at their defaults."""
        usual = {"ratio_of": "weights", "channels": None}
        found = super()._arguments()
        return {k: v for k, v in found.items() if k not in usual or v != usual[k]}

    def cost_of(self, site: Site, part: str) -> float:
        return self._cost.of(site)

    def budget(self) -> Constraint:
        """Returns the constraint that keeps the budget."""
        raise NotImplementedError

    def codebook(self, bits: int) -> Codebook:
        """Returns the constraint of 2^bits values a factor."""
        return Codebook(bits, begin=self.codebook_begin)

    def constraints(self) -> list[Constraint]:
        codebooks = [] if self.bits in (None, 32) else [self.codebook(self.bits)]
        return [*self.channel_budgets(), *codebooks, self.budget()]

    def channel_budgets(self) -> list[Constraint]:
        """Returns what drops whole channels, before the budget acts in what is left; none here."""
        return []


def names() -> list[str]:
    """Returns the names of all registered methods, as `get` takes them."""
    return Method.registry.names()


def name_of(method: Method | type[Method]) -> str:
    """Returns the name of a method or of its class, as `get` takes it."""
    return Method.registry.name_of(method if isinstance(method, type) else type(method))


def class_of(name: str) -> type[Method]:
    """Returns the class of a method from its name, in any case.

    Raises:
        ValueError: for an unknown name.

    Example:

    >>> class_of("alr").takes("ratio"), class_of("da").takes("ratio")
    (True, False)
    """
    return Method.registry.find(name)


def arguments_in_channels(cls: type[Method], ratio: float) -> dict[str, Any]:
    """Returns the arguments with which a method drops whole channels to a ratio of operations.

    Args:
        cls: class of the method.
        ratio: multiply-accumulates that are left, as a ratio of the dense ones.

    Raises:
        ValueError: if it drops none.

    Example:

    >>> arguments_in_channels(class_of("atmc"), 0.5)
    {'channels': 0.5}
    """
    if cls.takes("channels"):
        return {"channels": ratio}
    if cls.takes("ratio") and cls.ratio_of == "macs":
        return {"ratio": ratio}
    kinds = [(name, class_of(name)) for name in names()]
    able = [n for n, c in kinds if c.takes("channels") or c.ratio_of == "macs"]
    raise ValueError(
        f"The method {name_of(cls)!r} drops no channels, so that its network does not run faster. "
        f"Those that do: {', '.join(able)}."
    )


def arguments_in_macs(cls: type[Method]) -> dict[str, Any]:
    """Returns the arguments with which a method's `ratio` is one of multiply-accumulates.

    Args:
        cls: class of the method.

    Raises:
        ValueError: if its ratio cannot be one.

    Example:

    >>> arguments_in_macs(class_of("atmc"))
    {'ratio_of': 'macs'}
    """
    if cls.takes("ratio") and cls.ratio_of == "macs":
        return {}
    if not cls.takes("ratio_of"):
        kinds = [(name, class_of(name)) for name in names()]
        able = [n for n, c in kinds if c.takes("ratio_of") or c.ratio_of == "macs"]
        raise ValueError(
            f"The method {name_of(cls)!r} has no budget of multiply-accumulates. Those that have "
            f"one: {', '.join(able)}."
        )
    return {"ratio_of": "macs"}


def get(identifier: Any, **arguments: Any) -> Method:
    """Returns a method.

    Args:
        identifier: a `Method`, its name (such as `"atmc"`), or a serialised method.
        **arguments: constructor arguments for a name; those the method does not take are refused.

    Returns:
        A `Method`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these, and for arguments that are unknown or stand
            beside a method that is made already.
    """
    return get_configured(Method, identifier, arguments)
