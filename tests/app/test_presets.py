"""The named configurations are the paper's rows, and what goes beyond them."""

from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig, SinusoidConfig


def test_presets_are_the_papers_rows_and_what_goes_beyond():
    assert set(presets.PAPER) == {
        name + mode for name in ("o15", "o55", "o120", "o520", "m15", "m55") for mode in ("", "t")
    }
    tasks = lambda config: config.meta_steps * config.meta_batch
    images = lambda config: tasks(config) * config.inner_steps * config.inner_batch
    shares = {
        name: round(images(config) / images(presets.PAPER[name.partition("-")[0]]), 4)
        for name, config in presets.BEYOND.items()
    }
    assert shares == {
        "o120-balanced-tenth": 0.1,
        "o120-prototypes": 0.1,
        "o15-balanced": 1,
        "o15-balanced-quarter": 0.25,
        "o15-zero-pairs": 0.25,
    }
    assert presets.PAPER["o520t"] == FewShotConfig(
        ways=20,
        shots=5,
        inner_batch=20,
        inner_steps=10,
        inner_rate=5e-4,
        meta_steps=200_000,
        eval_batch=10,
        transductive=True,
    )
    m55 = presets.PAPER["m55"]
    assert (m55.inner_steps, m55.train_shots, m55.eval_batch, m55.size) == (8, 15, 15, 84)


def test_every_preset_can_be_trained():
    for config in presets.ALL.values():
        config.check()
    assert presets.ALL["sinusoid-serial"] == SinusoidConfig(meta_batch=1, meta_rate=0.1)
