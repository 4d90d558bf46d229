"""`python -m ia_jax.cli`: the same as `ia-jax`."""

import sys

from ia_jax.cli.entry import main

sys.exit(main())
