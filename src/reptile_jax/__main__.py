"""`python -m reptile_jax` is the command `reptile-jax`."""

import sys

from reptile_jax.cli import main

sys.exit(main())
