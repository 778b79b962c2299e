"""Reptile beside FOMAML and MAML, and the paper's experiments on its inner gradients."""
