"""Normalising flows as moves between sets of hidden units: the maps, and their training."""

from lossland.flows.maps import Flow, iaf, realnvp, restored
from lossland.flows.training import FlowDiverged, FlowFit, fit_bijection, fit_likelihood

__all__ = ["Flow", "FlowDiverged", "FlowFit", "fit_bijection", "fit_likelihood", "iaf", "realnvp", "restored"]
