"""JAX is imported here first: the command says in one line why it cannot be."""

import sys
from pathlib import Path

try:
    import jax as jax
except Exception as fault:  # a jaxlib that is missing, or does not fit
    by_name = Path(sys.argv[0]).stem == "reptile-jax"
    by_module = sys.argv[0] == "-m" and "reptile_jax" in sys.orig_argv
    if not (by_name or by_module):
        raise
    reason = (str(fault).splitlines() or [type(fault).__name__])[0]
    raise SystemExit(f"reptile-jax: JAX cannot be imported: {reason}") from fault
