"""``python -m fsd`` is the ``fsd`` command."""

from fsd.entry import main

raise SystemExit(main())
