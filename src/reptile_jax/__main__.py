"""`python -m reptile_jax` is the command `reptile-jax`."""

import sys

from reptile_jax.app.cli import main

sys.exit(main())
