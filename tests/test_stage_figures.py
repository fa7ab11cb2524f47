"""The diagram of a layer-by-layer path (AY20 Fig. 4), and the marks of its stages, read off actual paths."""

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import make_task
from lossland import connect, figures, models
from lossland.evaluation import evaluate
from lossland.figures.stages import STATES, plot_stages, stage_states
from lossland.paths import segment

TASK = make_task(shape=(1, 4, 4))
NET = models.MLP(TASK.input_shape, 3, widths=(5, 4, 6))
A, B = (models.initial_weights(NET, torch.Generator().manual_seed(seed)) for seed in (1, 2))


def path(matching=None, scheme="adjust"):
    return connect(NET, A, B, matching=matching, scheme=scheme, task=TASK, knots=3)


def test_without_matching_the_diagram_is_figure_4():
    states = stage_states(path())
    assert states.index.tolist() == [f"linear.{i}" for i in range(4)] and states.columns.tolist() == ["A", "1", "2", "3", "B"]
    assert states.to_numpy().tolist() == [
        ["A", "B", "B", "B", "B"],
        ["A", "adjusted", "B", "B", "B"],
        ["A", "A", "adjusted", "B", "B"],
        ["A", "A", "A", "adjusted", "B"],
    ]


def test_butterflies_skip_the_last_intermediate_point():
    states = stage_states(path(scheme="butterfly"))
    assert states.columns.tolist() == ["A", "1", "2", "B"]
    assert states["2"].tolist() == ["B", "B", "adjusted", "A"] and (states["B"] == "B").all()


def test_with_matching_layers_are_b_in_the_order_of_a_until_the_permutation():
    order = {f"hidden{i}": torch.arange(n).flip(0) for i, n in enumerate((5, 4, 6))}
    states = stage_states(path(matching=order))
    assert states["4"].tolist() == ["matched"] * 4 and (states["B"] == "B").all() and states.shape == (4, 6)
    assert states["2"].tolist() == ["matched", "matched", "adjusted", "A"]


def test_the_diagram_has_letters_in_every_cell_and_names_what_they_mean():
    figure = plot_stages(path())
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts][:5] == ["A", "B", "B", "B", "B"] and len(axes.texts) == 20
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"linear.{i}" for i in range(4)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A: A's weights", "AB: refit to A's outputs", "B: B's weights"]
    assert figure.png() == plot_stages(stage_states(path())).png()
    for box in (axes.xaxis.label, figure.legends[0]):
        extent = box.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width


def test_letters_stand_out_from_their_cells():
    from test_figures import _contrast

    ink = {"white": "#ffffff", "black": "#000000"}
    assert all(_contrast(colour, ink[letters]) >= 4.5 for _, colour, letters, _ in STATES.values())


def test_stages_are_marked_and_named_above_the_path():
    found = path(matching={"hidden0": torch.arange(5).flip(0)})
    table = evaluate(NET, found, TASK, splits=("test",), points=21)
    figure = figures.plot_path({"WA": table}, metric="error", stages=found.stages, ends=False)
    axes = figure.axes[0]
    above = axes.child_axes[0]
    names = [label.get_text() for label in above.get_xticklabels()]
    assert names == ["linear.0", "linear.1", "linear.2", "output", "order"]
    np.testing.assert_allclose(above.get_xticks(), (found.stages.t0 + found.stages.t1) / 2)
    np.testing.assert_allclose([line.get_xdata()[0] for line in axes.lines[1:]], found.stages.t0[1:])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 - 100 * table.accuracy)


def test_paths_without_stages_and_unknown_states_are_refused():
    with pytest.raises(TypeError, match="path must be a staged path, .* got Path"):
        stage_states(segment(A, B))
    with pytest.raises(ValueError, match="states of path must be one of 'A', 'adjusted'"):
        plot_stages(pd.DataFrame({"A": ["A", "C"]}))
