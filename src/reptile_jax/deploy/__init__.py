"""Trained models that adapt: made of your own parameters, brought along, or read from a file.

`rj.pretrained` gives one that comes with the package, `rj.export` writes one as a file.
"""

from reptile_jax.deploy.adaptable import AdaptableModel as AdaptableModel
from reptile_jax.deploy.adaptation import Trajectory as Trajectory
from reptile_jax.deploy.catalogue import cards as cards
from reptile_jax.deploy.programs import load as load
from reptile_jax.deploy.recipes import from_config as from_config
