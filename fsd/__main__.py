"""``python -m fsd`` is the ``fsd`` command."""

from fsd.cli import main

raise SystemExit(main())
