# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the helpers beside the unit tests importable, whatever directory pytest was started in."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

# A loaded machine is no reason for a property to fail.
settings.register_profile("collection", deadline=None, database=None)
settings.load_profile("collection")
