"""The paper's results, and ways to go beyond them."""
