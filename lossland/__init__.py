"""How minima of neural networks are connected: paths, curves and subspaces in weight space.

Weights are values, a path maps t to weights, a family is control points times a basis.

Examples:
    >>> import lossland as ll
    >>> task = ll.load_task("digits")
    >>> net = ll.network(task, "mlp", width=100)
    >>> a, b = ll.endpoints(task, "mlp", width=100, seeds=(1, 2))  # doctest: +SKIP
    >>> ll.evaluate(net, ll.segment(a, b), task).groupby("split").accuracy.min()  # doctest: +SKIP
"""

from lossland.connect import connect
from lossland.ensembles import fge, wa_ensemble
from lossland.evaluation import evaluate, predict
from lossland.families import Family, bezier, chain, line, point, simplex
from lossland.figures import plot_path, plot_plane
from lossland.figures.slider import slider
from lossland.layers import Layer, permute, verify
from lossland.legs import through_origin
from lossland.metrics import barrier
from lossland.neurons import pooled_centre
from lossland.paths import Path, arc, join, segment
from lossland.planes import plane
from lossland.recipes import endpoints, network, recipe_for, trained
from lossland.search import worst
from lossland.store import Store
from lossland.subspaces import subspace
from lossland.tables import results_table, table
from lossland.tasks import Task, load_task
from lossland.tracing import trace
from lossland.training import Recipe, fit
from lossland.weights import Weights

__version__ = "0.1.0"

__all__ = [
    "Family", "Layer", "Path", "Recipe", "Store", "Task", "Weights", "arc", "barrier", "bezier", "chain",
    "connect", "endpoints", "evaluate", "fge", "fit", "join", "line", "load_task", "network", "permute", "plane",
    "plot_path", "plot_plane", "point", "pooled_centre", "predict", "recipe_for", "results_table", "segment",
    "simplex", "slider", "subspace", "table", "through_origin", "trace", "trained", "verify", "wa_ensemble", "worst",
]
