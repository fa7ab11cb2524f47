"""Ensembles: networks whose predictions are averaged, on backbones of their own or on a shared one."""

from lossland.ensembles.averaging import AVERAGES, averaged, running_average
from lossland.ensembles.weight_adjusted import Ensemble, ensemble_cost, independent, wa_ensemble

__all__ = ["AVERAGES", "Ensemble", "averaged", "ensemble_cost", "independent", "running_average", "wa_ensemble"]
