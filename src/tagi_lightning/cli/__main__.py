"""`python -m tagi_lightning.cli`."""

import sys

from tagi_lightning.cli import main

sys.exit(main())
