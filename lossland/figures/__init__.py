"""Figures of the book: metrics along paths, planes through weight space, clouds of units.

Those of ensembles, stages, subspaces and midpoints are modules of their own. Every function returns a Matplotlib
figure (`lossland.figures.pictures.Picture`) that needs neither pyplot nor a display. Lines differ in dash and marker as
well as in colour, so that no figure needs colour vision.
"""

from lossland.figures.paths import plot_clouds, plot_path
from lossland.figures.planes import plot_plane

__all__ = ["plot_clouds", "plot_path", "plot_plane"]
