"""`reptile-jax demo`: a local page to draw symbols on, which a model adapts to as one watches."""
