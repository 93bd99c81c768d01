"""``python -m naru.cli``."""

import sys

from naru.cli import main

sys.exit(main())
