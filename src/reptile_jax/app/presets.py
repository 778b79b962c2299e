"""Named configurations: the paper's rows (Nichol et al. 2018, appendix A) and others."""

import dataclasses

from reptile_jax.app.config import Config, FewShotConfig, SinusoidConfig


def _rows() -> dict[str, FewShotConfig]:
    o5 = FewShotConfig()
    o20 = dataclasses.replace(
        o5,
        ways=20,
        inner_batch=20,
        inner_steps=10,
        inner_rate=5e-4,
        meta_steps=200_000,
        eval_batch=10,
    )
    m5 = dataclasses.replace(
        o5, dataset="mini-imagenet", train_shots=15, inner_steps=8, size=84, color="rgb"
    )
    rows = {
        "o15": o5,
        "o55": dataclasses.replace(o5, shots=5),
        "o120": o20,
        "o520": dataclasses.replace(o20, shots=5),
        "m15": m5,
        "m55": dataclasses.replace(m5, shots=5, eval_batch=15),
    }
    transductive = {
        f"{name}t": dataclasses.replace(row, transductive=True) for name, row in rows.items()
    }
    return dict(sorted((rows | transductive).items()))


# Named by data set, shots and ways; a t at the end is transductive.
PAPER: dict[str, FewShotConfig] = _rows()
# Not of the paper. The classifier starts every task at zero, with four times the inner rate and
# meta-batches of two; in the best for 1-shot, mini-batches show every class as often.
_PAIRS = FewShotConfig(classifier="zero", inner_rate=4e-3, meta_batch=2, meta_steps=62_500)
_BALANCED = dataclasses.replace(_PAIRS, balanced_batches=True)
BEYOND: dict[str, FewShotConfig] = {
    # With a tenth of o120's inner gradients:
    "o120-balanced-tenth": dataclasses.replace(
        PAPER["o120"],
        classifier="zero",
        inner_rate=2e-3,
        balanced_batches=True,
        meta_batch=2,
        meta_steps=50_000,
    ),
    # The same budget by prototypes, on 60 ways, with mirrored classes and twice the inner rate:
    "o120-prototypes": dataclasses.replace(
        PAPER["o120"],
        classifier="prototypes",
        ways=60,
        eval_ways=20,
        inner_batch=120,
        balanced_batches=True,
        inner_steps=5,
        inner_rate=1e-3,
        meta_batch=2,
        meta_steps=16_667,
        mirrored=True,
    ),
    "o15-balanced": dataclasses.replace(_BALANCED, meta_steps=250_000),
    # And with a quarter of o15's inner gradients:
    "o15-balanced-quarter": _BALANCED,
    "o15-zero-pairs": _PAIRS,
}
# The setting of the authors' demonstration.
SINUSOID_SERIAL = SinusoidConfig(meta_batch=1, meta_rate=0.1)
ALL: dict[str, Config] = {**PAPER, **BEYOND, "sinusoid-serial": SINUSOID_SERIAL}
