"""`python -m plamo_ref` is `plamo-ref`."""

import sys

from plamo_ref.cli import main

sys.exit(main())
