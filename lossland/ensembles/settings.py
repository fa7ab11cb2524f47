"""How the papers gather their ensembles: recipes, where the runs start, and the budget that they fit into."""

from __future__ import annotations

from dataclasses import dataclass

from lossland.ensembles.runs import check_budget
from lossland.schedules import Recipe, member_iterations


@dataclass(frozen=True)
class Setting:
    """A published recipe of one ensemble at one budget.

    Attributes:
        recipe: of a run, from each start.
        starts: epochs of the pretraining after which a run starts; (0,): from initial weights.
        budget: B, the epochs in which one network is trained alone; 0: the start is somebody else's network.
        source: where it is from, and what the source leaves open.
        include_start: whether the starting weights are a member.

    Raises:
        ValueError: if pretraining and runs do not fit into the budget.
    """

    recipe: Recipe
    starts: tuple[int, ...]
    budget: int
    source: str
    include_start: bool = False

    def __post_init__(self) -> None:
        if self.budget:
            check_budget(self.budget, max(self.starts), len(self.starts), self.recipe.epochs)

    @property
    def epochs(self) -> int:
        """Return the epochs that pretraining and all runs take."""
        return max(self.starts) + len(self.starts) * self.recipe.epochs

    @property
    def members(self) -> int:
        """Return the number of members at this budget."""
        per_run = len(member_iterations(self.recipe, 2)) + self.include_start  # any even number of batches
        return per_run * len(self.starts)


def _fge(epochs: int, lr: float, lr_low: float, cycle: int, weight_decay: float) -> Recipe:
    return Recipe(epochs=epochs, lr=lr, lr_low=lr_low, cycle=cycle, weight_decay=weight_decay, schedule="triangular")


_README = "released code, README"
FGE_SETTINGS: dict[str, Setting] = {
    "g18-vgg16": Setting(_fge(22, 1e-2, 5e-4, 2, 5e-4), (120, 156), 200, "G18 section 6, A.5: 22 members"),
    "g18-wrn": Setting(_fge(22, 5e-2, 5e-4, 4, 5e-4), (120, 156), 200, "G18 section 6, A.5: 12 members"),
    "g18-preresnet": Setting(_fge(22, 5e-2, 5e-4, 4, 3e-4), (125,), 150, "G18 section 6, A.5: 6 members"),
    "g18-imagenet": Setting(Recipe(epochs=5, lr=1e-3, lr_low=1e-5, cycle=2, weight_decay=1e-4, schedule="triangular",
                                   batch_size=256), (0,), 0, "G18 6.1: a pretrained network and three members; weight "
                            "decay and batch size are not stated there, ours are those usual for ImageNet", True),
    # The README's VGG16 has one learning rate from 1e-2 to 1e-2: constant.
    "readme-vgg16": Setting(_fge(40, 1e-2, 1e-2, 2, 5e-4), (160,), 200, _README),
    "readme-preresnet": Setting(_fge(40, 5e-2, 1e-2, 2, 3e-4), (160,), 200, _README),
    "readme-wrn": Setting(_fge(40, 5e-2, 1e-2, 2, 5e-4), (160,), 200, _README),
}
"""Fast Geometric Ensembling. 20 members with the README's recipes."""


def _sse(epochs: int, members: int, lr: float, weight_decay: float) -> Recipe:
    return Recipe(epochs=epochs, lr=lr, cycle=epochs // members, weight_decay=weight_decay, schedule="restarts")


SSE_SETTINGS: dict[str, Setting] = {
    "g18-vgg16": Setting(_sse(200, 5, 0.05, 5e-4), (0,), 200, "G18 section 6: alpha_0 = .05, M = 5"),
    "g18-wrn": Setting(_sse(200, 5, 0.1, 5e-4), (0,), 200, "G18 section 6: alpha_0 = .1, M = 5"),
    "g18-preresnet": Setting(_sse(148, 4, 0.1, 3e-4), (0,), 150, "G18 section 6: alpha_0 = .1, M = 4; 150 epochs are "
                             "not four times a whole number: four cycles of 37 epochs"),
}
"""Snapshot Ensembles; weight decay as in the training of single networks."""

SWA_SETTINGS: dict[str, Setting] = {
    "w21-cyclic": Setting(Recipe(epochs=36, lr=0.05, cycle=6, weight_decay=1e-4, schedule="restarts"), (120,), 160,
                          "W21 D.4: from 75 % of 160 epochs on, six networks; cycles of 6 epochs are ours"),
    "w21-constant": Setting(Recipe(epochs=36, lr=0.05, cycle=6, weight_decay=1e-4, schedule="constant"), (120,), 160,
                            "W21 D.4: from 75 % of 160 epochs on, six networks; one every 6 epochs is ours"),
}
"""Stochastic Weight Averaging and, from the same six networks, SWAG."""
