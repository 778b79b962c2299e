"""Measurements, by question: speed, the paper's results, and Reptile beside MAML."""
