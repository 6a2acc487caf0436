# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shipping, measured against its peers on links that are made, calibrated and taken down here."""
