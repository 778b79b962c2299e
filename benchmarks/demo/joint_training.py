"""The joint training that the demo's page compares with, from two runs, in the package.

Joint training is Reptile with one inner step (Nichol et al. 2018, section 4): the tasks of the
learned initialisations, in batches of as many examples, with the inner rate of the learned one.

    reptile-jax train omniglot --data DIR --inner-steps 1 --inner-batch 50 --balanced-batches \\
      --inner-rate 0.004 --meta-batch 2 --meta-steps 5000 --balanced-eval --eval-tasks 1000 --out A
    reptile-jax train sinusoid --inner-steps 1 --inner-batch 50 --out B
    python -m benchmarks.demo.joint_training --symbols A --waves B

The classifier is learned: one that is at zero in every task would leave one step nothing to learn.
"""

import json
from pathlib import Path

import tyro

from reptile_jax.app import models
from reptile_jax.app.json_files import write_json
from reptile_jax.deploy import tensors

FOLDER = Path(__file__).parents[2] / "src/reptile_jax/app/demo/weights"


def main(symbols: Path, waves: Path, out: Path = FOLDER) -> None:
    """Writes the weights and their cards.

    Args:
      symbols: the folder of the run on Omniglot.
      waves: the folder of the run on sine waves.
      out: the folder of the weights.
    """
    for name, run in (("joint-symbols", symbols), ("joint-waves", waves)):
        model = models.adaptable(run)
        learned = {"params": model.params, "inner_opt_state": model.inner_opt_state}
        (out / f"{name}.safetensors").write_bytes(tensors.saved(learned))
        results = json.loads((run / "results.json").read_text())
        card = {key: results[key] for key in ("scores", "tasks", "meta steps", "environment")}
        card["scores"] = card["scores"]["Reptile"]
        write_json(out / f"{name}.json", {"config": model.card["config"], **card})


if __name__ == "__main__":
    tyro.cli(main)
