"""Ensembles: networks whose predictions are averaged, on backbones of their own or on a shared one."""

from lossland.ensembles.averaging import AVERAGES, averaged, running_average
from lossland.ensembles.curve_ensembles import curve_ensemble, curve_points, pair_ensembles, random_direction
from lossland.ensembles.diversity import disagreement, distances, end_statistics
from lossland.ensembles.members import Members, running_mean
from lossland.ensembles.mirrored_pairs import mirrored
from lossland.ensembles.random_mixtures import mixtures
from lossland.ensembles.runs import fge, snapshots, swa, swag
from lossland.ensembles.scores import member_scores, predict_members
from lossland.ensembles.settings import FGE_SETTINGS, SSE_SETTINGS, SWA_SETTINGS
from lossland.ensembles.temperature import best_temperature, global_temperature, point_temperatures
from lossland.ensembles.trace import trace_cycle
from lossland.ensembles.weight_adjusted import Ensemble, ensemble_cost, independent, wa_ensemble

__all__ = ["AVERAGES", "Ensemble", "FGE_SETTINGS", "Members", "SSE_SETTINGS", "SWA_SETTINGS", "averaged",
           "best_temperature", "curve_ensemble", "curve_points", "disagreement", "distances", "end_statistics",
           "ensemble_cost", "fge", "global_temperature", "independent", "member_scores", "mirrored", "mixtures",
           "pair_ensembles", "point_temperatures", "predict_members", "random_direction", "running_average",
           "running_mean", "snapshots", "swa", "swag", "trace_cycle", "wa_ensemble"]
