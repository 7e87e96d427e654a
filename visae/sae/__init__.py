"""Dictionaries (sparse autoencoders), made of parts; their files, cards and baselines."""

from visae.sae import kinds as _builders  # noqa: F401  (registers the kinds)
from visae.sae.baselines import BASELINES, baselines, fit_baseline, neurons, pca, random_directions
from visae.sae.card import Card, MismatchError
from visae.sae.codes import Codes
from visae.sae.dictionary import Dictionary, Losses
from visae.sae.ensemble import Ensemble
from visae.sae.files import load_card, load_sae, save_sae
from visae.sae.hub import pull_sae, push_sae
from visae.sae.init import initialise
from visae.sae.moments import Moments
from visae.sae.normalisers import NORMALISERS, Normaliser, normalisers
from visae.sae.pursuit import pursue
from visae.sae.registry import ABOUT, KINDS, About, kind_options, kinds, make_sae, register_kind
from visae.sae.side import Rows

__all__ = [
    "ABOUT", "BASELINES", "KINDS", "NORMALISERS", "About", "Card", "Codes", "Dictionary", "Ensemble", "Losses",
    "MismatchError", "Moments", "Normaliser", "Rows", "baselines", "fit_baseline", "initialise", "kind_options",
    "kinds", "load_card", "load_sae", "make_sae", "neurons", "normalisers", "pca", "pull_sae", "pursue", "push_sae",
    "random_directions", "register_kind", "save_sae",
]  # fmt: skip
