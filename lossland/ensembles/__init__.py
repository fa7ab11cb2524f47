"""Ensembles: networks whose predictions are averaged, on backbones of their own or on a shared one."""

from lossland.ensembles.averaging import AVERAGES, averaged, running_average
from lossland.ensembles.scores import member_scores, predict_members
from lossland.ensembles.temperature import best_temperature, global_temperature, point_temperatures
from lossland.ensembles.weight_adjusted import Ensemble, ensemble_cost, independent, wa_ensemble

__all__ = ["AVERAGES", "Ensemble", "averaged", "best_temperature", "ensemble_cost", "global_temperature", "independent",
           "member_scores", "point_temperatures", "predict_members", "running_average", "wa_ensemble"]
