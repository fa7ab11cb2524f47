"""Ensembles: networks whose predictions are averaged, on backbones of their own or on a shared one."""

from lossland.ensembles.averaging import AVERAGES, averaged, running_average
from lossland.ensembles.curve_ensembles import curve_ensemble, curve_points, pair_ensembles, random_direction
from lossland.ensembles.diversity import disagreement, distances
from lossland.ensembles.scores import member_scores, predict_members
from lossland.ensembles.temperature import best_temperature, global_temperature, point_temperatures
from lossland.ensembles.weight_adjusted import Ensemble, ensemble_cost, independent, wa_ensemble

__all__ = ["AVERAGES", "Ensemble", "averaged", "best_temperature", "curve_ensemble", "curve_points", "disagreement",
           "distances", "ensemble_cost", "global_temperature", "independent", "member_scores", "pair_ensembles",
           "point_temperatures", "predict_members", "random_direction", "running_average", "wa_ensemble"]
